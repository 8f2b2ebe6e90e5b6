"""The cache of features, shared by processes, killed, damaged: in the end it has the bytes of one quiet pass."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from bench.command_line import Command
from bench.networks import batch_sizes, small_cnn
from egal_bench.errors import BenchError
from egal_bench.models.devices import BATCH
from egal_bench.scoring import features
from profiles import is_thorough

SAMPLES = 75
FILES = ["maps.npy", "pooled.npy", "roi.npy", "rows.txt"]


@pytest.fixture(scope="module")
def dataset(phantom_dataset):
    return phantom_dataset(SAMPLES)


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "f"
    features.extract(dataset, small_cnn(), folder, "cpu")
    return content(folder)


@pytest.fixture
def stored(undisturbed, tmp_path):
    """A folder with a whole cache."""
    folder = tmp_path / "f"
    folder.mkdir()
    for name, data in undisturbed.items():
        (folder / name).write_bytes(data)
    return folder


def computed_samples(dataset, folder):
    """Extract into `folder`; return how many samples passed the trunk for it."""
    network = small_cnn()
    passed = batch_sizes(network)
    features.extract(dataset, network, folder, "cpu")
    return sum(passed)


def test_intact_features_are_not_computed_again(dataset, stored):
    assert features.intact(stored, SAMPLES)
    assert computed_samples(dataset, stored) == 0


def test_zeros_in_a_finished_cache_are_computed_again(dataset, stored, undisturbed, capsys):
    rows = np.load(stored / "maps.npy", mmap_mode="r+")
    rows[40:50] = 0
    rows.flush()
    assert not features.intact(stored, SAMPLES)
    assert computed_samples(dataset, stored) == SAMPLES - BATCH
    message = " ".join(capsys.readouterr().err.split())
    assert message == f"the features in {stored} are damaged from row {BATCH} on: computing them again"
    assert content(stored) == undisturbed


def test_cache_without_checksums_is_computed_again(dataset, stored, undisturbed, capsys):
    (stored / "rows.txt").unlink()
    assert computed_samples(dataset, stored) == SAMPLES
    assert "are without checksums, as earlier versions wrote them: computing them again" in " ".join(
        capsys.readouterr().err.split()
    )
    assert content(stored) == undisturbed


def test_features_that_vanish_give_a_clear_error(stored):
    (stored / "maps.npy").write_bytes(b"")
    with pytest.raises(BenchError, match="the same command computes these features again"):
        features.open_features(stored)
    (stored / "maps.npy").unlink()
    with pytest.raises(BenchError, match="the same command computes these features again"):
        features.open_features(stored)


# Forks children that compute the same cache, in batches of two so that files are written nearly all the time, and
# kills one of them at a time. Prints the exit statuses of the others, and how many were killed before their end.
KILLS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from egal_bench.dataset import open_dataset
from egal_bench.models import devices, network
from egal_bench.scoring import features

torch.set_num_threads(1)
devices.BATCH = 2
shards, folder, beside, share = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
dataset, rng = open_dataset(shards), random.Random(beside)

def extract():
    child = os.fork()
    if child == 0:
        try:
            trunk = network.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0)
            features.extract(dataset, trunk, folder, "cpu")
            os._exit(0 if features.intact(folder, len(dataset.keys)) else 3)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(4)
    return child

def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def content():
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

begun = time.monotonic()
ends = [status(extract())]
duration, quiet, killed = time.monotonic() - begun, content(), 0
repetitions, kills = (16, 1) if beside else (4, 4)
for _ in range(repetitions // share):
    shutil.rmtree(folder)
    for _ in range(kills):
        victim, *others = [extract() for _ in range(1 + beside)]
        time.sleep(rng.uniform(0, 0.8 * duration / kills))
        os.kill(victim, signal.SIGKILL)
        killed += status(victim) == -signal.SIGKILL
        ends += [status(child) for child in others]
    ends.append(status(extract()))
    assert content() == quiet
print(json.dumps({"ends": ends, "killed": killed}))
"""


@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "beside another"])
def test_killed_passes_leave_the_bytes_of_a_quiet_pass(dataset, tmp_path, monkeypatch, beside):
    share = 1 if is_thorough() else 4
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(dataset.shards.where), str(tmp_path / "f"), str(beside), str(share)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["ends"]) == {0}, done.stderr
    assert report["killed"] >= 4 // share  # the others had ended before
    monkeypatch.setattr("egal_bench.models.devices.BATCH", 2)
    features.extract(dataset, small_cnn(), tmp_path / "quiet", "cpu")
    assert content(tmp_path / "f") == content(tmp_path / "quiet")
    assert features.open_features(tmp_path / "f").maps.astype(bool).any((1, 2, 3)).all()


FLAGS = [
    "--regime=frozen", "--backbone=small-cnn", "--strategies=random", "--seeds=1", "--init=10", "--budget=5",
    "--rounds=1", "--workers=1",
]  # fmt: skip


def test_comparison_completes_the_cache_of_a_killed_one(dataset, tmp_path):
    killed, other = (
        Command("compare", dataset.shards.where, *FLAGS, f"--out={tmp_path / out}", cwd=tmp_path) for out in ("a", "b")
    )
    while not list(tmp_path.glob("features/*/rows.txt")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    process = other.completed()
    assert process.returncode == 0, process.stderr
    [cache] = tmp_path.glob("features/*-small-cnn-*")
    assert features.intact(cache, SAMPLES)
    assert sorted(content(cache)) == FILES
    assert features.open_features(cache).maps.astype(bool).any((1, 2, 3)).all()


# Computes the cache, and after each batch waits for a line on stdin.
WAITING = """
import sys
from pathlib import Path
from egal_bench.dataset import open_dataset
from egal_bench.models import network
from egal_bench.scoring import features
trunk = network.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0)
def stop(n):
    print(n, flush=True)
    if n:
        sys.stdin.readline()
features.extract(open_dataset(sys.argv[1]), trunk, Path(sys.argv[2]), "cpu", stop)
"""


def test_second_process_waits_for_the_first_and_says_so(dataset, tmp_path, undisturbed):
    words = [sys.executable, "-c", WAITING, str(dataset.shards.where), str(tmp_path / "f")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert [int(first.stdout.readline()) for _ in range(2)] == [0, BATCH]  # one batch is written, the lock held
        second = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert any(line.startswith("waiting for another process that computes the features") for line in second.stderr)
        first.kill()
        assert second.wait() == 0
        second.stderr.close()
    assert content(tmp_path / "f") == undisturbed

"""The pass of a network over a pool: what it computes, in bounded memory, and what it does when something breaks."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from egal_bench import model, pool_pass
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.pool_pass import score
from egal_bench.precision import faster
from egal_kernels import acquire, pack_roi
from egal_shards import ShardError, pack
from egal_shards.sources import phantom

FLOAT32 = Config(precision="float32")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("pass") / "set"
    pack(phantom(samples=90, size=32, roi_area=0.08), path, size=32, shard_mb=0.05, progress=False)
    found = open_dataset(path)
    assert len(found.shards.manifest.shards) > 2
    return found


def network(seed: int = 3) -> model.Network:
    return model.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=seed).eval()


def one_by_one(made: model.Network, dataset, positions) -> list:
    """acquire's reference on each sample alone, in float64."""
    made = made.double()
    outs = []
    for i in positions:
        sample = dataset.shards[int(i)]
        x = (torch.from_numpy(sample.image.copy())[None].double() / 255 - made.mean) / made.std
        with torch.no_grad():
            maps = made.trunk(x)
        roi = pack_roi(torch.from_numpy(sample.roi)[None])
        outs.append(acquire(maps, made.head.weight, made.head.bias, roi, backend="reference"))
    return outs


def test_scores_are_those_of_each_sample_alone_in_the_order_asked_for(dataset):
    positions = np.random.default_rng(0).permutation(len(dataset.keys))[:70]
    found = score(network(), dataset, positions, FLOAT32, "cpu", overlap=True, features=True)
    for i, out in enumerate(one_by_one(network(), dataset, positions)):
        np.testing.assert_allclose(found.logits[i], out.logits[0], atol=1e-5)
        np.testing.assert_allclose(found.entropy[i], out.entropy[0], atol=1e-5)
        assert abs(found.overlap.intersection[i] - int(out.intersection)) <= 1  # a pixel within rounding of 0.5
        assert abs(found.overlap.cam_area[i] - int(out.cam_area)) <= 1
        assert found.overlap.roi_area[i] == int(out.roi_area) == dataset.shards.rows.roi_area[positions[i]]
        np.testing.assert_allclose(found.overlap.dice[i], out.dice()[0], atol=2e-2)
    with torch.no_grad():
        first = network().features(torch.from_numpy(dataset.shards[int(positions[0])].image.copy())[None]).mean((2, 3))
    np.testing.assert_allclose(found.features[0], first[0], atol=1e-5)
    cheap = score(network(), dataset, positions, FLOAT32, "cpu", overlap=False)
    np.testing.assert_allclose(cheap.logits, found.logits, atol=1e-5)
    assert (cheap.overlap, cheap.features) == (None, None)


def test_a_head_that_is_not_linear_is_explained_by_its_gradient(dataset):
    made = network()
    made.head = nn.Sequential(nn.Linear(made.head.in_features, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    positions = dataset.test[:5]
    found = score(made, dataset, positions, FLOAT32, "cpu", overlap=True)
    for i, position in enumerate(positions):
        sample = dataset.shards[int(position)]
        maps = made.features(torch.from_numpy(sample.image.copy())[None]).detach().requires_grad_()
        logits = made.head(maps.mean((2, 3)))
        logits.max().backward()  # the whole head, one image
        alpha = maps.grad.mean((2, 3))
        roi = pack_roi(torch.from_numpy(sample.roi)[None])
        want = acquire(maps.detach(), None, None, roi, alpha=alpha, logits=logits.detach(), backend="reference")
        np.testing.assert_allclose(found.logits[i], want.logits[0], atol=1e-5)
        assert abs(found.overlap.cam_area[i] - int(want.cam_area)) <= 1
        assert abs(found.overlap.intersection[i] - int(want.intersection)) <= 1


def test_bfloat16_reaches_the_trunk_and_only_the_trunk(dataset):
    made, seen = network(), []
    made.trunk.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    half = score(made, dataset, dataset.test, Config(precision="bfloat16"), "cpu", overlap=True)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert half.logits.dtype == np.float32
    whole = score(network(), dataset, dataset.test, FLOAT32, "cpu", overlap=True)
    difference = np.abs(half.logits - whole.logits).max() / np.abs(whole.logits).max()
    assert 0 < difference < 0.05


def test_the_faster_precision_is_chosen(monkeypatch):
    clock = iter(np.cumsum([0, 9, 0, 9] + [0, 2, 0, 1] * 3).tolist())  # start, end of float32, then of bfloat16
    monkeypatch.setattr("egal_bench.precision.perf_counter", lambda: next(clock))
    assert faster(lambda x: x, torch.zeros(1)) == "bfloat16"
    clock = iter(np.cumsum([0, 9, 0, 1] + [0, 1, 0, 1] * 3).tolist())  # the first round does not count
    assert faster(lambda x: x, torch.zeros(1)) == "float32"


def test_a_disturbance_does_not_decide_the_precision_of_a_small_network(monkeypatch):
    """That changed all the numbers of a comparison: its start loads libraries in another process."""
    took = iter([0.005, 0.001] * 20 + [0.001, 0.001] * 1000)  # of float32, then of bfloat16
    clock = iter([moment for taken in took for moment in (0, taken)])
    monkeypatch.setattr("egal_bench.precision.perf_counter", lambda: next(clock))
    assert faster(lambda x: x, torch.zeros(1)) == "float32"


class Small(nn.Module):
    """A trunk on a device that holds `limit` images."""

    def __init__(self, trunk: nn.Module, limit: int) -> None:
        super().__init__()
        self.trunk, self.limit, self.sizes = trunk, limit, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("tried to allocate 1 GiB")
        self.sizes.append(len(x))
        return self.trunk(x)


def test_out_of_memory_halves_the_batch_once_says_so_and_goes_on(dataset, capsys):
    positions = np.arange(len(dataset.keys))
    want = score(network(), dataset, positions, FLOAT32, "cpu", overlap=True)
    made = network()
    made.trunk = Small(made.trunk, 20)
    found = score(made, dataset, positions, FLOAT32, "cpu", overlap=True)
    np.testing.assert_allclose(found.logits, want.logits, atol=1e-5)
    assert made.trunk.sizes == [16, 16, 16, 16, 16, 10]
    said = " ".join(capsys.readouterr().err.split())
    assert said == "a batch of 32 exceeds the memory of cpu: going on with batches of 16"


@pytest.mark.parametrize(
    ("samples", "limit", "said", "error"), [(90, 15, [32], 16), (9, 3, [9], 4), (9, 0, [9], 4), (1, 0, [], 1)]
)
def test_half_a_batch_that_is_too_much_as_well_is_an_error(dataset, capsys, samples, limit, said, error):
    made = network()
    made.trunk = Small(made.trunk, limit)
    with pytest.raises(BenchError, match=rf"^a batch of {error} exceeds the memory of cpu: end .*, lower --size, or"):
        score(made, dataset, np.arange(samples), FLOAT32, "cpu", overlap=True)
    assert re.findall(r"a batch of (\d+) exceeds", capsys.readouterr().err) == [str(size) for size in said]
    assert not made.trunk.sizes


def test_an_error_of_the_network_is_not_taken_for_lack_of_memory(dataset):
    def broken(*_):
        raise RuntimeError("the map is too small")

    made = network()
    made.trunk.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="the map is too small"):
        score(made, dataset, np.arange(9), FLOAT32, "cpu", overlap=True)


SMALL_MEMORY = """
import re, resource, sys
import numpy as np, torch
from pathlib import Path
from egal_bench import model
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.pool_pass import score
torch.set_num_threads(1)
dataset = open_dataset(sys.argv[1])
network = model.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0).eval()
run = lambda: score(network, dataset, np.arange(90), Config(precision="float32"), "cpu", overlap=True)
want = run()
network.trunk.register_forward_hook(lambda module, args, out: [out, torch.empty(len(out) << 27, dtype=torch.uint8)][0])
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30),) * 2)
np.testing.assert_allclose(run().logits, want.logits, atol=1e-5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux limits a process's memory so")
def test_a_process_that_may_not_have_more_memory_halves_its_batch(dataset):
    """128 MB an image: 4 GB a batch of 32, 2 GB half of it, and 3 GB are allowed."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, str(dataset.shards.where)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()) == "a batch of 32 exceeds the memory of cpu: going on with batches of 16"


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sample_that_is_not_finite_is_named_with_its_shard_and_file(dataset, overlap):
    made, whole = network(), network().trunk
    bad = torch.from_numpy(dataset.shards[41].image.copy())[None].float() / 255

    def poisoned(module, args, out):
        same = ((args[0] * module_std + module_mean - bad).abs().amax((1, 2, 3)) < 1e-3)[:, None, None, None]
        return torch.where(same, torch.nan, out)

    module_mean, module_std = made.mean, made.std
    made.trunk = whole
    whole.register_forward_hook(poisoned)
    key, shard = str(dataset.keys[41]), dataset.shards.manifest.shards[int(dataset.shards.rows.shard[41])].file
    with pytest.raises(BenchError, match=rf"^{shard}, packed from .+: sample '{key}': the network's output is NaN"):
        score(made, dataset, np.arange(90), FLOAT32, "cpu", overlap=overlap)


def stops_at(dataset, batches: int, error: BaseException):
    """`dataset`, whose shards give `batches` batches and then raise."""

    def few(positions, size, device):
        for i, batch in enumerate(dataset.shards.batches(positions, size, device)):
            if i == batches:
                raise error
            yield batch

    shards = SimpleNamespace(batches=few, manifest=dataset.shards.manifest, rows=dataset.shards.rows)
    return SimpleNamespace(shards=shards, keys=dataset.keys, named=dataset.named)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ShardError("shard-000001.tar: cut short")])
def test_an_interrupted_pass_computes_only_what_is_missing(dataset, tmp_path, error):
    positions, ran = np.arange(90), []
    with pytest.raises(type(error)):
        score(network(), stops_at(dataset, 2, error), positions, FLOAT32, "cpu", overlap=True, folder=tmp_path)
    again = network()
    again.trunk.register_forward_hook(lambda module, args, out: ran.append(len(out)))
    how = {"overlap": True, "folder": tmp_path}
    found = score(again, dataset, positions, FLOAT32, "cpu", **how)
    assert ran == [26]
    want = score(network(), dataset, positions, FLOAT32, "cpu", overlap=True)
    np.testing.assert_array_equal(found.logits, want.logits)
    np.testing.assert_array_equal(found.overlap.dice, want.overlap.dice)
    score(again, dataset, positions, FLOAT32, "cpu", **how)
    assert ran == [26]  # all was there
    score(network(seed=4), dataset, positions, FLOAT32, "cpu", **how)
    with torch.no_grad():
        again.head.bias[0] += 1e-3
    other = score(again, dataset, positions, FLOAT32, "cpu", **how)
    assert ran == [26, 32, 32, 26]  # other weights: nothing is reused
    assert not np.array_equal(other.logits, found.logits)


def test_a_row_that_was_cut_short_is_computed_again(dataset, tmp_path):
    positions = np.arange(90)
    want = score(network(), dataset, positions, FLOAT32, "cpu", overlap=False, features=True, folder=tmp_path)
    [file] = tmp_path.glob("*/features.npy")
    for cut in (500, len(file.read_bytes()) - 3):  # within a row; within the header
        whole = file.read_bytes()
        file.write_bytes(whole[:-cut])
        found = score(network(), dataset, positions, FLOAT32, "cpu", overlap=False, features=True, folder=tmp_path)
        assert np.array_equal(file.read_bytes(), whole) or file.stat().st_size == len(whole)
        np.testing.assert_allclose(found.features, want.features, atol=1e-5)
        np.testing.assert_allclose(found.logits, want.logits, atol=1e-5)


def test_a_damaged_shard_is_named(tmp_path):
    pack(phantom(samples=60, size=32), tmp_path / "set", size=32, shard_mb=0.05, progress=False)
    found = open_dataset(tmp_path / "set")
    shard = tmp_path / "set" / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample"):
        score(network(), found, np.arange(60), FLOAT32, "cpu", overlap=True)


MEMORY = """
import sys, resource
import numpy as np, torch
from egal_bench import model
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.pool_pass import score
torch.set_num_threads(1)
dataset = open_dataset(sys.argv[1])
network = model.build("small-cnn", 3, image_channels=1, image_size=64, size=None, seed=0).eval()
positions = np.arange(len(dataset.keys))
run = lambda n: score(network, dataset, np.resize(positions, n), Config(precision="float32"), "cpu", overlap=True)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(300)
before = peak()
assert len(run(3_000).logits) == 3_000
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_pool(tmp_path):
    """Ten times as many samples, of 4 kB with maps of 16 kB, 60 MB in all: their numbers take 120 kB."""
    pack(phantom(samples=300, size=64), tmp_path / "set", size=64, progress=False)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 6 * 1024  # kB


def test_batches_of_another_size_give_the_same_numbers_within_rounding(dataset, monkeypatch):
    want = score(network(), dataset, dataset.test, FLOAT32, "cpu", overlap=True)
    monkeypatch.setattr(pool_pass, "BATCH", 7)
    found = score(network(), dataset, dataset.test, FLOAT32, "cpu", overlap=True)
    np.testing.assert_allclose(found.logits, want.logits, atol=1e-5)

"""`egal-bench profile`: what it measures, writes, prints and refuses."""

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from egal_bench import measurements, model, profile_stages
from egal_bench import profile as module
from egal_bench.cli import main
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.pool_pass import score
from egal_bench.profile import best_batch, profile
from egal_bench.profile_report import as_json, draw_stages, stage_table
from egal_bench.profile_stages import MEANING, Resident, stages
from egal_shards import pack
from egal_shards.sources import phantom

EGAL_BENCH = str(Path(sys.executable).with_name("egal-bench"))
STAGES = ["read", "decode", "batches", "transfer", "forward", "explanation", "scoring", "acquisition", "pass"]
CONFIG = Config(backbone="small-cnn", precision="float32", device="cpu")
TINY = ["--backbone=small-cnn", "--size=32", "--phantom-samples=60", "--threads=1", "--precision=float32"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "set"
    pack(phantom(samples=60, size=32, roi_area=0.08), path, size=32, progress=False)
    return path


# The command, once


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder, stdout, the JSON, the table) of a run in a process of its own."""
    folder = tmp_path_factory.mktemp("command")
    words = ["--batch-size=8", "--samples=19", "--rounds=3", "--trace=traces/t.json", "--json"]
    done = subprocess.run([EGAL_BENCH, "profile", *TINY, *words], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "profiles").glob("*.parquet")
    return folder, done.stdout, json.loads(done.stdout.splitlines()[-1]), measurements.load(path)


def test_json_has_the_contracts_keys(ran):
    _, _, found, _ = ran
    assert {
        "device", "backbone", "size", "batch", "images_per_s", "forward_images_per_s", "share_of_forward", "stages",
        "peers", "peak_mb",
    } <= set(found)  # fmt: skip
    assert (found["device"], found["backbone"], found["size"], found["batch"]) == ("cpu", "small-cnn", 32, 8)
    assert list(found["stages"]) == STAGES
    assert found["peers"] == {}


def test_every_figure_follows_from_the_seconds_in_the_table(ran):
    _, _, found, table = ran
    seconds = {row.stage: np.asarray(row.seconds) for row in table.itertuples()}
    assert all(len(one) == 3 for one in seconds.values())
    assert (table["samples"] == 16).all()  # 19 in whole batches of 8
    for row in table.itertuples():
        for q in (5, 25, 50, 75, 95):
            assert getattr(row, f"rate_q{q:02}") == pytest.approx(np.percentile(16 / seconds[row.stage], q))
        assert row.share_of_forward == pytest.approx(np.median(seconds["forward"] / seconds[row.stage]))
        assert found["stages"][row.stage] == pytest.approx(np.median(16 / seconds[row.stage]), abs=1e-3)
    assert found["images_per_s"] == found["stages"]["pass"]
    assert found["forward_images_per_s"] == found["stages"]["forward"]
    assert found["share_of_forward"] == pytest.approx(np.median(seconds["forward"] / seconds["pass"]), abs=1e-4)


def test_the_table_says_what_was_measured_and_where(ran):
    _, _, found, table = ran
    assert table["stage"].tolist() == STAGES
    want = {"backbone": "small-cnn", "size": 32, "batch": 8, "precision": "float32", "threads": 1}
    assert table[list(want)].drop_duplicates().to_dict("records") == [want]
    for name in ("time", "device", "driver", "versions", "dataset"):
        assert table[name].nunique() == 1, name
        assert table[name].notna().all(), name
    assert table["peak_mb"].round(1).unique().tolist() == [found["peak_mb"]]
    assert 50 < found["peak_mb"] < 20_000
    rated = table.set_index("stage")["share_of_roof"].dropna()
    assert set(rated.index) == {"read", "decode", "batches", "forward", "explanation", "scoring", "pass"}
    assert ((rated > 0) & (rated < 3)).all()


def test_it_prints_every_stage_whole_and_draws_a_picture(ran):
    folder, out, _, _ = ran
    for name in STAGES:
        rates, meaning = (line for line in out.splitlines() if line.startswith((f"  {name} ", f" {name} ")))
        assert any(digit in rates for digit in "0123456789"), name
        assert meaning.split()[1:4] == MEANING[name].split()[:3], name
    assert "…" not in out
    (picture,) = (folder / "profiles").glob("*.png")
    with Image.open(picture) as image:
        image.load()
        assert min(image.size) > 400
        colours = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 20)}
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # of the bars


def test_the_trace_shows_the_pass_with_its_stages_inside_and_the_reading_threads(ran):
    folder, _, _, _ = ran
    events = json.loads((folder / "traces/t.json").read_text())["traceEvents"]
    spans = pd.DataFrame([one for one in events if one.get("cat") == "user_annotation"]).set_index("name")
    names = {"pass": 1, "reading": 1, "forward": 2, "explanation": 2, "acquisition": 1}
    assert spans.index.value_counts().to_dict() == names  # both batches are read in one run
    begin, end = spans["ts"]["pass"], spans["ts"]["pass"] + spans["dur"]["pass"]
    inside = spans.loc[["reading", "forward", "explanation"]]
    assert (inside["ts"] >= begin).all()
    assert (inside["ts"] + inside["dur"] <= end).all()
    assert spans["tid"]["pass"] not in set(spans.loc[["reading"], "tid"])


def test_it_leaves_nothing_else(ran):
    folder, _, _, _ = ran
    assert sorted(path.suffix or path.name for path in (folder / "profiles").iterdir()) == [
        ".parquet",
        ".png",
        "shards",
    ]
    assert [path.name for path in (folder / "traces").iterdir()] == ["t.json"]


# What the stages do


@pytest.fixture
def prepared(shards):
    """(dataset, network, positions, the stages) of 24 samples in batches of 8."""
    dataset = open_dataset(shards)
    network = model.build("small-cnn", dataset.classes, image_channels=1, image_size=32, size=None, seed=1).eval()
    positions = dataset.pool[::-1][:24]
    there = Resident.of(network, dataset, positions, CONFIG, 8)
    return dataset, network, positions, stages(network, dataset, there, CONFIG, 8)


def test_read_gives_the_bytes_of_the_shards_and_decode_alone_reads_none(prepared, monkeypatch):
    dataset, _, positions, found = prepared
    index = pd.read_parquet(Path(dataset.shards.where) / "index.parquet").iloc[positions]
    spans = found["read"].run()
    assert found["read"].bytes == sum(map(len, spans))
    for span, key in zip(spans, index["key"], strict=True):
        assert f"{key}.image.npy".encode() in span[:512]  # the tar header of its first member
    monkeypatch.setattr(profile_stages.os, "pread", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened"))
    found["decode"].run()


def test_decode_checks_what_it_decodes(prepared, monkeypatch):
    _, _, _, found = prepared
    checked = []
    own = profile_stages.decode_span
    monkeypatch.setattr(profile_stages, "decode_span", lambda *given: checked.append(own(*given)))
    found["decode"].run()
    assert len(checked) == 24


def test_the_forward_stage_counts_the_trunks_operations(prepared):
    _, network, _, found = prepared
    flop = 0

    def count(layer, _, out):
        nonlocal flop
        flop += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    for layer in network.trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.features(torch.zeros(24, 1, 32, 32, dtype=torch.uint8))
    assert found["forward"].amount == found["scoring"].amount == found["pass"].amount == flop


def test_forward_runs_the_network_without_the_explanation_and_scoring_with(prepared, monkeypatch):
    _, network, _, found = prepared
    images, explained = [], []
    network.trunk.register_forward_hook(lambda _, given, __: images.append(len(given[0])))
    own = profile_stages.explained
    spy = lambda *given: explained.append(len(given[1])) or own(*given)  # noqa: E731
    monkeypatch.setattr(profile_stages, "explained", spy)
    monkeypatch.setattr("egal_bench.pool_pass.explained", spy)
    seen = {}
    for name in ("forward", "explanation", "scoring", "pass"):
        images.clear()
        explained.clear()
        found[name].run()
        seen[name] = (sum(images), sum(explained))
    assert seen == {"forward": (24, 0), "explanation": (0, 24), "scoring": (24, 24), "pass": (24, 24)}


def test_acquisition_ranks_by_entropy_plus_misalignment(prepared):
    dataset, network, positions, found = prepared
    scores = score(network, dataset, positions, CONFIG, "cpu", overlap=True)
    d = 1 - np.asarray(scores.overlap.dice, np.float64)
    d[np.isnan(d)] = np.nanmean(d)
    order = found["acquisition"].run()
    np.testing.assert_array_equal(order, np.argsort(-(scores.entropy + d), kind="stable"))


def test_the_stages_are_those_that_are_explained(prepared):
    assert list(prepared[3]) == list(MEANING) == STAGES


# How many images


def timed_by(monkeypatch, seconds):
    """A batch of n images takes `seconds(n)`."""
    monkeypatch.setattr(
        module, "_seconds_of_a_batch", lambda step, dataset, positions, device, rounds: seconds(len(positions))
    )


def test_auto_takes_the_last_batch_that_was_worth_it(monkeypatch):
    rate = {8: 100, 16: 150, 32: 190, 64: 191, 128: 400}
    timed_by(monkeypatch, lambda n: n / rate[n])
    assert best_batch(None, None, np.arange(1000), "cpu") == 32


def test_auto_stops_where_the_memory_or_the_pool_ends(monkeypatch):
    def seconds(n):
        if n > 64:
            raise torch.OutOfMemoryError
        return 1.0

    timed_by(monkeypatch, seconds)
    assert best_batch(None, None, np.arange(1000), "cpu") == 64
    assert best_batch(None, None, np.arange(40), "cpu") == 32
    assert best_batch(None, None, np.arange(5), "cpu") == 5


@pytest.mark.parametrize(
    ("seconds", "wanted", "samples"),
    [(0.1, None, 80), (3.0, None, 16), (0.001, None, 96), (3.0, 8, 8), (3.0, 31, 24), (3.0, 3, 8)],
)
def test_a_run_lasts_a_second_or_as_many_images_as_asked_for(monkeypatch, seconds, wanted, samples):
    timed_by(monkeypatch, lambda n: seconds)
    assert module._samples(None, None, np.arange(100), 8, wanted, "cpu") == samples


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts memory so")
def test_the_peak_is_of_the_run_alone():
    def use(size):
        with mmap.mmap(-1, size) as memory:  # given back when closed, whatever the allocator keeps
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 1

    use(400_000_000)
    base = module._peak_mb(lambda: None, "cpu")
    assert module._peak_mb(lambda: use(150_000_000), "cpu") - base == pytest.approx(150, abs=2)


# What it refuses, and what it survives


def profiled(shards, out, **more):
    config = CONFIG.model_copy(update={"shards": (str(shards),)})
    return profile(config, out, **{"batch": 8, "samples": 16, "rounds": 2, "with_peers": False, "trace": None} | more)


def test_a_set_without_any_roi_is_profiled_and_its_peers_are_not_timed(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    lines = ["file,label,boxes"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(tmp_path / f"in/{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},[]")
    (tmp_path / "in/labels.csv").write_text("\n".join(lines))
    done = subprocess.run(
        [EGAL_BENCH, "pack", "folder", tmp_path / "in", tmp_path / "set", "--size=32"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = profiled(tmp_path / "set", tmp_path / "out", with_peers=True)
    assert list(as_json(found)["stages"]) == STAGES
    assert as_json(found)["peers"] == {}
    assert all("nothing to compare" in peer.why or "not installed" in peer.why for peer in found.peers.values())
    stage_table(found)
    draw_stages(found, tmp_path / "drawn.png")


def test_a_batch_beyond_the_devices_memory_is_named(shards, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Resident, "of", full)
    with pytest.raises(BenchError, match="--batch-size 8: more than the memory of cpu holds"):
        profiled(shards, tmp_path)


def status(monkeypatch, cwd, *words) -> int:
    monkeypatch.chdir(cwd)
    monkeypatch.setattr("sys.argv", ["egal-bench", "profile", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: a number of images, or auto"),
        (["--batch-size", "many"], "--batch-size many: a number of images, or auto"),
        (["--batch-size", "61"], r"--batch-size 61: the pool has \d+ samples"),
        (["--samples", "0"], "--samples 0: at least 1"),
        (["--samples", "4000"], r"--samples 4000: the pool has \d+ samples"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--backbone", "resnet81"], "unknown backbone 'resnet81'"),
        (["--backbone", "vit_tiny_patch16_224", "--size", "224"], "no feature map .* choose a convolutional network"),
        (["--out", "file"], "file: File exists; choose another folder"),
        (["--trace", "file/t.json"], "file: File exists; choose another folder"),
        (["--threshold", "2"], "--threshold: "),
        (["--explain-convention", "gradcam"], "unknown convention 'gradcam': did you mean 'grad-cam'"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(shards, tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "file").touch()
    assert status(monkeypatch, tmp_path, shards, "--backbone=small-cnn", *words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.png"))


def test_ctrl_c_leaves_no_half_written_file(shards, tmp_path, monkeypatch, capsys):
    def half(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measurements.pq, "write_table", half)
    words = ["--backbone=small-cnn", "--samples=16", "--batch-size=8", "--rounds=1", "--json"]
    assert status(monkeypatch, tmp_path, shards, *words) == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["profiles"]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["error: interrupted"]

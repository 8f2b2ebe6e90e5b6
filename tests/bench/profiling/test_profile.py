"""How many images a profile measures, how it measures memory, and the data and devices that it survives."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from egal_bench.errors import BenchError
from egal_bench.profiling import profile as module
from egal_bench.profiling.profile import best_batch, profile
from egal_bench.profiling.report import _filling, as_json, draw_stages, stage_table
from egal_bench.profiling.stages import MEANING, Resident
from egal_shards import pack
from egal_shards.sources import folder

POOL = np.arange(1000)


@pytest.fixture
def batch_takes(monkeypatch):
    """Return a function that makes a batch of n images take `seconds(n)`."""

    def replace(seconds):
        replacement = lambda step, dataset, positions, device, rounds: seconds(len(positions))  # noqa: E731
        monkeypatch.setattr(module, "_seconds_of_a_batch", replacement)

    return replace


def test_auto_takes_the_last_batch_that_was_faster(batch_takes):
    rate = {8: 100, 16: 150, 32: 190, 64: 191, 128: 400}
    batch_takes(lambda n: n / rate[n])
    assert best_batch(None, None, POOL, "cpu") == 32


def test_auto_stops_where_the_memory_or_the_pool_ends(batch_takes):
    def seconds(n):
        if n > 64:
            raise torch.OutOfMemoryError
        return 1.0

    batch_takes(seconds)
    assert best_batch(None, None, POOL, "cpu") == 64
    assert best_batch(None, None, POOL[:40], "cpu") == 32
    assert best_batch(None, None, POOL[:5], "cpu") == 5


@pytest.mark.parametrize(
    ("seconds", "requested", "samples"),
    [(0.1, None, 80), (3.0, None, 16), (0.001, None, 96), (3.0, 8, 8), (3.0, 31, 24), (3.0, 3, 8)],
)
def test_a_run_lasts_a_second_or_has_the_requested_images(batch_takes, seconds, requested, samples):
    batch_takes(lambda n: seconds)
    assert module._samples(None, None, POOL[:100], 8, requested, "cpu") == samples


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts memory in this way")
def test_the_peak_is_that_of_the_run_alone():
    def use(size):
        with mmap.mmap(-1, size) as memory:  # given back when closed, whatever the allocator keeps
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 1

    use(400_000_000)
    base = module._peak_mb(lambda: None, "cpu")
    assert module._peak_mb(lambda: use(150_000_000), "cpu") - base == pytest.approx(150, abs=2)


@pytest.fixture
def without_roi(tmp_path):
    """A shard set in which no sample has an ROI."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    lines = ["file,label,boxes"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(tmp_path / f"in/{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},[]")
    (tmp_path / "in/labels.csv").write_text("\n".join(lines))
    pack(folder(tmp_path / "in"), tmp_path / "set", size=32, progress=False)
    return tmp_path / "set"


def measured(config, out, **settings):
    brief = {"batch": 8, "samples": 16, "rounds": 2, "with_peers": False, "trace": None}
    return profile(config, out, **brief | settings)


def test_a_set_without_any_roi_is_profiled_without_peers(config, without_roi, tmp_path):
    config = config.model_copy(update={"shards": (str(without_roi),)})
    result = measured(config, tmp_path / "out", with_peers=True)
    assert list(as_json(result)["stages"]) == list(MEANING)
    assert as_json(result)["peers"] == {}
    problems = [peer.problem for peer in result.peers.values()]
    assert all("nothing to compare" in problem or "not installed" in problem for problem in problems)
    stage_table(result)
    draw_stages(result, tmp_path / "drawn.png")


def test_a_batch_beyond_the_memory_of_the_device_is_named(config, tmp_path, monkeypatch):
    def exhaust(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Resident, "of", exhaust)
    with pytest.raises(BenchError, match="--batch-size 8: more than the memory of cpu holds"):
        measured(config, tmp_path)


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
def test_a_profile_scores_in_the_precision_of_a_run(config, tmp_path, monkeypatch, precision, allowed):
    modes = []

    def record(*_):
        modes.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Resident, "of", record)
    with pytest.raises(BenchError):
        measured(config.model_copy(update={"precision": precision}), tmp_path)
    assert modes == [(allowed, allowed)]


@pytest.mark.parametrize(("samples", "words"), [(8, "only 1 batch,"), (72, "only 9 batches,"), (80, "")])
def test_a_pass_of_few_batches_is_called_what_it_is(samples, words):
    text = _filling(samples, 8)
    assert words in text
    assert ("80 images or more" in text) == bool(words)

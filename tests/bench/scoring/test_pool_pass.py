"""The pass of a network over a pool: what it computes, in bounded memory, and what it names when something breaks."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.models import devices
from egal_bench.models.heads import Head
from egal_bench.models.network import Network
from egal_bench.scoring.pool_pass import score
from egal_kernels import acquire, pack_roi
from egal_shards import ShardError, pack
from egal_shards.sources import phantom

CONFIG = Config()
SEED = 3


@pytest.fixture(scope="module")
def dataset(phantom_dataset):
    opened = phantom_dataset(90, shard_mb=0.05)
    assert len(opened.shards.manifest.shards) > 2
    return opened


@pytest.fixture
def network() -> Network:
    return small_cnn(SEED).eval()


def scores(network: Network, dataset, positions, *needs: str, **settings):
    return score(network, dataset, positions, CONFIG, "cpu", needs=set(needs), **settings)


def acquired_alone(dataset, positions) -> list:
    """Return acquire's reference on each sample alone, in float64."""
    network, acquisitions = small_cnn(SEED).eval().double(), []
    for i in positions:
        sample = dataset.shards[int(i)]
        x = (torch.from_numpy(sample.image.copy())[None].double() / 255 - network.mean) / network.std
        with torch.no_grad():
            maps = network.trunk(x)
        roi = pack_roi(torch.from_numpy(sample.roi)[None])
        acquisitions.append(acquire(maps, network.head.weight, network.head.bias, roi, backend="reference"))
    return acquisitions


def test_scores_are_those_of_each_sample_alone_in_order(network, dataset):
    positions = np.random.default_rng(0).permutation(len(dataset.keys))[:70]
    full = scores(network, dataset, positions, "roi", "features")
    for i, alone in enumerate(acquired_alone(dataset, positions)):
        np.testing.assert_allclose(full.logits[i], alone.logits[0], atol=1e-5)
        np.testing.assert_allclose(full.entropy[i], alone.entropy[0], atol=1e-5)
        assert abs(full.overlap.intersection[i] - int(alone.intersection)) <= 1  # a pixel within rounding of 0.5
        assert abs(full.overlap.cam_area[i] - int(alone.cam_area)) <= 1
        assert full.overlap.roi_area[i] == int(alone.roi_area) == dataset.shards.rows.roi_area[positions[i]]
        np.testing.assert_allclose(full.overlap.dice[i], alone.dice()[0], atol=2e-2)
    with torch.no_grad():
        image = torch.from_numpy(dataset.shards[int(positions[0])].image.copy())[None]
        pooled = network.features(image).mean((2, 3))
    np.testing.assert_allclose(full.features[0], pooled[0], atol=1e-5)


def test_scores_hold_what_is_needed_and_no_more(network, dataset):
    positions = dataset.test
    full = scores(network, dataset, positions, "roi", "features")
    for needs in ((), ("roi",), ("features",)):
        part = scores(network, dataset, positions, *needs)
        np.testing.assert_allclose(part.logits, full.logits, atol=1e-5)
        np.testing.assert_allclose(part.entropy, full.entropy, atol=1e-5)
        assert (part.overlap is not None) == ("roi" in needs)
        assert (part.features is not None) == ("features" in needs)
    np.testing.assert_allclose(scores(network, dataset, positions, "features").features, full.features, atol=1e-6)


class Curved(Head):
    """A head of two layers, which has no `weight` of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classes = 3
        self.layers = nn.Sequential(nn.Linear(channels, 8), nn.Tanh(), nn.Linear(8, 3))

    def logits(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)


def test_head_that_is_not_linear_is_explained_by_its_gradient(network, dataset):
    network.head = Curved(network.head.in_features).eval()
    positions = dataset.test[:5]
    passed = scores(network, dataset, positions, "roi")
    for i, position in enumerate(positions):
        sample = dataset.shards[int(position)]
        maps = network.features(torch.from_numpy(sample.image.copy())[None]).detach().requires_grad_()
        logits = network.head(maps.mean((2, 3)))
        logits.max().backward()
        alpha = maps.grad.mean((2, 3))
        roi = pack_roi(torch.from_numpy(sample.roi)[None])
        alone = acquire(maps.detach(), None, None, roi, alpha=alpha, logits=logits.detach(), backend="reference")
        np.testing.assert_allclose(passed.logits[i], alone.logits[0], atol=1e-5)
        assert abs(passed.overlap.cam_area[i] - int(alone.cam_area)) <= 1
        assert abs(passed.overlap.intersection[i] - int(alone.intersection)) <= 1


def test_bfloat16_reaches_the_trunk_and_only_the_trunk(network, dataset):
    dtypes = []
    network.trunk.register_forward_hook(lambda module, args, out: dtypes.append((args[0].dtype, out.dtype)))
    half = score(network, dataset, dataset.test, Config(precision="bfloat16"), "cpu", needs={"roi"})
    assert set(dtypes) == {(torch.float32, torch.bfloat16)}
    assert half.logits.dtype == np.float32
    full = scores(network, dataset, dataset.test, "roi")
    difference = np.abs(half.logits - full.logits).max() / np.abs(full.logits).max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("needs", [(), ("roi",)], ids=["plain", "roi"])
def test_sample_that_is_not_finite_is_named_with_shard_and_file(network, dataset, needs):
    bad_image = network.prepared(torch.from_numpy(dataset.shards[41].image.copy())[None])

    def poison(module, args, out):
        same = ((args[0] - bad_image).abs().amax((1, 2, 3)) < 1e-3)[:, None, None, None]
        return torch.where(same, torch.nan, out)

    network.trunk.register_forward_hook(poison)
    key, shard = str(dataset.keys[41]), dataset.shards.manifest.shards[int(dataset.shards.rows.shard[41])].file
    with pytest.raises(BenchError, match=rf"^{shard}, packed from .+: sample '{key}': the network's output is NaN"):
        scores(network, dataset, np.arange(90), *needs)


def stopping_after(dataset, count: int, error: BaseException):
    """Return `dataset` with shards that give `count` batches and then raise `error`."""

    def few(positions, size, device):
        for i, batch in enumerate(dataset.shards.batches(positions, size, device)):
            if i == count:
                raise error
            yield batch

    shards = SimpleNamespace(batches=few, manifest=dataset.shards.manifest, rows=dataset.shards.rows)
    return SimpleNamespace(shards=shards, keys=dataset.keys, named=dataset.named)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ShardError("shard-000001.tar: cut short")], ids=type)
def test_interrupted_pass_computes_only_what_is_missing(network, dataset, tmp_path, error):
    positions, sizes = np.arange(90), []
    with pytest.raises(type(error)):
        scores(network, stopping_after(dataset, 2, error), positions, "roi", folder=tmp_path)
    network.trunk.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    resumed = scores(network, dataset, positions, "roi", folder=tmp_path)
    assert sizes == [26]
    direct = scores(small_cnn(SEED).eval(), dataset, positions, "roi")
    np.testing.assert_array_equal(resumed.logits, direct.logits)
    np.testing.assert_array_equal(resumed.overlap.dice, direct.overlap.dice)
    scores(network, dataset, positions, "roi", folder=tmp_path)
    assert sizes == [26]  # every row was stored


def test_stored_scores_of_other_weights_are_not_reused(network, dataset, tmp_path):
    positions, sizes = np.arange(90), []
    stored = scores(network, dataset, positions, "roi", folder=tmp_path)
    scores(small_cnn(SEED + 1).eval(), dataset, positions, "roi", folder=tmp_path)
    network.trunk.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    with torch.no_grad():
        network.head.bias[0] += 1e-3
    other = scores(network, dataset, positions, "roi", folder=tmp_path)
    assert sizes == [32, 32, 26]
    assert not np.array_equal(other.logits, stored.logits)


def test_row_that_was_cut_short_is_computed_again(network, dataset, tmp_path):
    positions = np.arange(90)
    stored = scores(network, dataset, positions, "features", folder=tmp_path)
    features, logits = np.array(stored.features), np.array(stored.logits)  # copies of what the file is mapped to
    [file] = tmp_path.glob("*/features.npy")
    content = file.read_bytes()
    for cut in (500, len(content) - 3):  # within a row; within the header
        file.write_bytes(content[:-cut])
        again = scores(network, dataset, positions, "features", folder=tmp_path)
        assert file.stat().st_size == len(content)
        np.testing.assert_allclose(again.features, features, atol=1e-5)
        np.testing.assert_allclose(again.logits, logits, atol=1e-5)


def test_damaged_shard_is_named(network, tmp_path):
    pack(phantom(samples=60, size=32), tmp_path / "set", size=32, shard_mb=0.05, progress=False)
    opened = open_dataset(tmp_path / "set")
    shard = tmp_path / "set" / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample"):
        scores(network, opened, np.arange(60), "roi")


MEMORY = """
import sys, resource
import numpy as np, torch
from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.scoring.pool_pass import score
torch.set_num_threads(1)
dataset = open_dataset(sys.argv[1])
network = small_cnn(size=64).eval()
positions = np.arange(len(dataset.keys))
run = lambda n: score(network, dataset, np.resize(positions, n), Config(), "cpu", needs={"roi"})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(150)
before = peak()
assert len(run(1_500).logits) == 1_500
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_pool(tmp_path, child_environment):
    """Ten times as many samples, of 4 kB with maps of 16 kB, 30 MB in all: their numbers take 60 kB."""
    pack(phantom(samples=150, size=64), tmp_path / "set", size=64, progress=False)
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "set")],
        capture_output=True, text=True, check=True, env=child_environment,
    )  # fmt: skip
    assert int(process.stdout) < 6 * 1024  # kB


def test_settings_that_decide_the_numbers_file_a_pass_apart(network, dataset, tmp_path):
    changes = [
        {}, {"threshold": 0.7}, {"explain_convention": "monai"}, {"precision": "bfloat16"}, {"compile": "on"},
        {"threads": 2},
    ]  # fmt: skip
    for change in changes:
        score(network, dataset, dataset.test[:4], Config(**change), "cpu", needs=set(), folder=tmp_path)
    assert sum(entry.is_dir() and (entry / "rows.txt").is_file() for entry in tmp_path.iterdir()) == len(changes)


def test_size_of_the_batches_decides_only_the_rounding(network, dataset, monkeypatch):
    expected = scores(network, dataset, dataset.test, "roi")
    monkeypatch.setattr(devices, "BATCH", 7)
    np.testing.assert_allclose(scores(network, dataset, dataset.test, "roi").logits, expected.logits, atol=1e-5)

"""The cached features of a frozen trunk: equal to a direct pass, resumable, and never those of another set or trunk."""

import numpy as np
import pytest
import torch

from bench.networks import batch_sizes, small_cnn
from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.models.devices import BATCH
from egal_bench.runs.grid import compute_features
from egal_bench.scoring import features
from egal_kernels import pack_roi


@pytest.fixture(scope="module")
def dataset(phantom_dataset):
    return phantom_dataset(75)


def test_features_are_the_trunks_output_and_the_packed_rois(dataset, tmp_path):
    steps = []
    features.extract(dataset, small_cnn(), tmp_path / "f", "cpu", steps.append)
    stored = features.open_features(tmp_path / "f")
    assert sum(steps) == 75
    network = small_cnn().eval()
    for i in (0, 31, 32, 74):
        sample = dataset.shards[i]
        with torch.no_grad():
            expected = network.features(torch.from_numpy(sample.image.copy())[None])[0]
        # a batch of one sums in another order: only the last bit of a float16 may differ
        np.testing.assert_allclose(stored.maps[i], expected.numpy(), rtol=2**-10, atol=2**-20)
        np.testing.assert_allclose(stored.pooled[i], stored.maps[i].astype(np.float64).mean((1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(stored.roi[i], pack_roi(torch.from_numpy(sample.roi)[None]).bits[0].numpy())


def test_interrupted_extraction_continues_where_it_stopped(dataset, tmp_path):
    done = []

    def interrupt_after_two_batches(n):
        done.append(n)
        if sum(done) == 2 * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features.extract(dataset, small_cnn(), tmp_path / "f", "cpu", interrupt_after_two_batches)
    assert not (tmp_path / "f").exists()
    network = small_cnn()
    passed = batch_sizes(network)
    features.extract(dataset, network, tmp_path / "f", "cpu")
    assert sum(passed) == 75 - 2 * BATCH
    features.extract(dataset, small_cnn(), tmp_path / "direct", "cpu")
    files = ["maps.npy", "pooled.npy", "roi.npy", "rows.txt"]
    for file in files:
        assert (tmp_path / "f" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == files


def test_sample_beyond_half_precision_is_named(dataset, tmp_path):
    network = small_cnn()
    with torch.no_grad():
        network.trunk[-2].weight.fill_(1e6)  # the last batch norm
    with pytest.raises(BenchError, match=r"sample 'brain-0\d+': its features are NaN, infinite or beyond float16"):
        features.extract(dataset, network, tmp_path / "f", "cpu")


def test_full_disk_is_foreseen(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(BenchError, match=r"the features need 0\.0 GB and 0\.0 GB are free; choose another --out"):
        features.extract(dataset, small_cnn(), tmp_path / "f", "cpu")


def test_everything_that_decides_the_features_is_in_their_identity(dataset, phantom_dataset):
    first = {
        "dataset": dataset, "backbone": "resnet18", "weights_digest": "w", "size": None, "precision": "float32",
        "device": "cuda:0", "compile": "off", "threads": 1,
    }  # fmt: skip
    changes = [
        {"dataset": phantom_dataset(75, seed=1)}, {"backbone": "resnet34"}, {"weights_digest": "v"}, {"size": 96},
        {"precision": "bfloat16"}, {"device": "cpu"}, {"compile": "on"}, {"threads": 2},
    ]  # fmt: skip
    names = [features.identity(**(first | change)) for change in [{}, *changes]]
    assert len(set(names)) == len(names)
    assert features.identity(**(first | {"device": "cuda:1"})) == names[0]


def test_a_change_of_the_programs_numbers_computes_features_again(dataset, monkeypatch):
    words = (dataset, "resnet18", "w", None, "float32", "cpu", "off", 1)
    before = features.identity(*words)
    monkeypatch.setattr(features, "NUMBERS", features.NUMBERS + 1)
    assert features.identity(*words) != before


def test_frozen_features_are_computed_deterministically_and_without_tf32(dataset, tmp_path, monkeypatch):
    seen = []

    def extract(*args):
        seen.append((torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32))

    monkeypatch.setattr(features, "extract", extract)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for precision in ("float32", "tf32"):
        compute_features(Config(regime="frozen", precision=precision), dataset, small_cnn(), tmp_path / "f")
    assert seen == [(1, False), (1, True)]

"""The cached features of a frozen trunk: equal to a direct pass, resumable, and never of another set or trunk."""

import numpy as np
import pytest
import torch

from egal_bench import features, model
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.pool_pass import BATCH
from egal_kernels import pack_roi
from egal_shards import pack
from egal_shards.sources import phantom


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "set"
    pack(phantom(samples=75, size=32), path, size=32, progress=False)
    return open_dataset(path)


def network():
    return model.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=5)


def test_features_are_the_trunks_output_and_the_rois_of_the_shards(dataset, tmp_path):
    counted = []
    features.extract(dataset, network(), tmp_path / "f", "cpu", counted.append)
    found = features.open_features(tmp_path / "f")
    assert sum(counted) == 75
    trunk = network().eval()
    for i in (0, 31, 32, 74):
        sample = dataset.shards[i]
        with torch.no_grad():
            want = trunk.features(torch.from_numpy(sample.image.copy())[None])[0]
        # a batch of one sums in another order: float16's last bit may differ, and no more
        np.testing.assert_allclose(found.maps[i], want.numpy(), rtol=2**-10, atol=2**-20)
        np.testing.assert_allclose(found.pooled[i], found.maps[i].astype(np.float64).mean((1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(found.roi[i], pack_roi(torch.from_numpy(sample.roi)[None]).bits[0].numpy())


def test_an_interrupted_extraction_goes_on_where_it_stopped(dataset, tmp_path, monkeypatch):
    def stop(n):
        if n == BATCH:
            stop.batches += 1
            if stop.batches == 2:
                raise KeyboardInterrupt

    stop.batches = 0
    with pytest.raises(KeyboardInterrupt):
        features.extract(dataset, network(), tmp_path / "f", "cpu", stop)
    assert not (tmp_path / "f").exists()
    passed = []
    trunk = network()
    whole = trunk.features
    monkeypatch.setattr(trunk, "features", lambda images: passed.append(len(images)) or whole(images))
    features.extract(dataset, trunk, tmp_path / "f", "cpu")
    assert sum(passed) == 75 - 2 * BATCH
    features.extract(dataset, network(), tmp_path / "direct", "cpu")
    for name in features.Features.__annotations__:
        file = f"{name}.npy"
        assert (tmp_path / "f" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["maps.npy", "pooled.npy", "roi.npy"]


def test_a_sample_beyond_half_precision_is_named(dataset, tmp_path):
    trunk = network()
    with torch.no_grad():
        trunk.trunk[-2].weight.fill_(1e6)  # the last batch norm
    with pytest.raises(BenchError, match=r"sample 'brain-0\d+': its features are NaN, infinite or beyond float16"):
        features.extract(dataset, trunk, tmp_path / "f", "cpu")


def test_a_full_disk_is_foreseen(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(BenchError, match=r"the features need 0\.0 GB and 0\.0 GB are free; choose another --out"):
        features.extract(dataset, network(), tmp_path / "f", "cpu")


def test_identity_changes_with_images_trunk_weights_and_size(dataset, tmp_path):
    pack(phantom(samples=75, size=32, seed=1), tmp_path / "set", size=32, progress=False)
    other = open_dataset(tmp_path / "set")
    names = {
        features.identity(dataset, "resnet18", "w", None), features.identity(other, "resnet18", "w", None),
        features.identity(dataset, "resnet34", "w", None), features.identity(dataset, "resnet18", "v", None),
        features.identity(dataset, "resnet18", "w", 96),
    }  # fmt: skip
    assert len(names) == 5

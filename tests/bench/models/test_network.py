"""Networks: reproducible, and explainable in closed form."""

import pytest
import timm
import torch

from egal_bench.errors import BenchError
from egal_bench.models import network as networks


def build(backbone="small-cnn", **settings):
    defaults = {"image_channels": 1, "image_size": 64, "size": None, "seed": 0}
    return networks.build(backbone, 3, **defaults | settings)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_seed_decides_the_initialisation_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    network, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.rand(3), expected)  # the global generator is left alone
    for name, value in network.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(network.head.weight, other.head.weight)


@pytest.mark.parametrize("backbone", ["small-cnn", "resnet10t", "mobilenetv3_small_050"])
def test_logits_are_the_head_on_the_mean_of_the_map(backbone):
    network, batch = build(backbone).eval(), images(2, 1, 64, 64)
    with torch.no_grad():
        maps = network.features(batch)
        pooled = torch.stack([maps[:, c].double().flatten(1).mean(1) for c in range(maps.shape[1])], 1)
        expected = pooled @ network.head.weight.double().T + network.head.bias.double()
        torch.testing.assert_close(network(batch).double(), expected, rtol=1e-5, atol=1e-5)
    assert maps.ndim == 4


def test_trunk_is_timms_network_up_to_its_pooling():
    """The trunk's features, pooled and put through timm's classifier, are timm's own logits."""
    original = timm.create_model("resnet10t", pretrained=False).eval()
    network, batch = build("resnet10t", weights=original.state_dict()).eval(), images(2, 3, 64, 64, seed=1)
    config = timm.data.resolve_model_data_config(original)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = original((batch / 255 - mean) / std)
        logits = original.fc(network.features(batch).mean((2, 3)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_grey_images_are_repeated_and_size_resizes():
    network, grey = build("resnet10t", size=96).eval(), images(1, 1, 64, 64, seed=2)
    with torch.no_grad():
        assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))
        assert network.features(grey).shape[-2:] == (3, 3)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet81", r"unknown backbone 'resnet81': did you mean 'resnet\d+'"),
        ("mixer_b16_224", r"no feature map .* choose a convolutional network"),
    ],
)
def test_backbone_that_cannot_be_explained_is_refused(backbone, message):
    with pytest.raises(BenchError, match=message):
        build(backbone, image_size=224)


def test_weights_of_another_network_are_refused():
    other = timm.create_model("resnet14t", pretrained=False).state_dict()
    with pytest.raises(BenchError, match=r"have (no tensor|'.*' of shape).*not of mobilenetv3_small_050"):
        build("mobilenetv3_small_050", weights=other)

"""Convolutions that apply their activation: what both modules compute, and only where nothing else reads the map."""

import copy

import pytest
import torch
from torch import nn

from egal_bench.models import inference
from egal_bench.models.activated import POINTWISE, activate
from egal_bench.models.checked_folds import disturb
from egal_bench.models.folds import ACTIVATIONS, folds_of
from egal_bench.models.inference import inference_network
from egal_bench.models.network import build
from egal_bench.models.precision import autocast

# backbone → pixels per side, convolutions that apply an activation
FAMILIES = {
    "small-cnn": (32, 4), "resnet18": (64, 9), "densenet121": (64, 59), "efficientnet_lite0": (64, 33),
    "vgg11_bn": (32, 8), "vgg11": (32, 8), "resnetv2_50": (64, 32), "convnext_atto": (64, 0),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", FAMILIES)
@torch.no_grad()
def test_pass_agrees_with_separate_activations_to_rounding(backbone, precision, monkeypatch):
    side, number = FAMILIES[backbone]
    network = build(backbone, 3, image_channels=3, image_size=side, size=None, seed=0).eval()
    disturb(network.trunk, torch.Generator().manual_seed(0))
    fused, has_operation = inference_network(network, "cpu", precision), inference.can_activate("cpu", precision)
    monkeypatch.setattr(inference, "can_activate", lambda device, precision: False)
    separate = inference_network(network, "cpu", precision)
    activated = sum(hasattr(module, "pointwise") for module in fused.trunk.modules())
    assert activated == (number if has_operation else 0)
    images = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8)
    with autocast("cpu", precision):
        maps, expected = fused.features(images), separate.features(images)
    exact = copy.deepcopy(network.trunk).double()(network.prepared(images).double())
    assert maps.dtype == expected.dtype
    assert (maps - exact).norm() < 3 * (expected - exact).norm()


class Reading(nn.Sequential):
    """The map of the convolution is also read after the activation, which may have changed it in place."""

    def forward(self, images):
        maps = self[0](images)
        return self[1](maps) + maps


class ReadingBefore(nn.Sequential):
    """The map of the convolution is also read before the activation."""

    def forward(self, images):
        maps = self[0](images)
        mean = maps.mean()
        return self[1](maps) + mean


class Returning(nn.Sequential):
    """The trunk returns the map of the convolution, not what the activation makes of it."""

    def forward(self, images):
        maps = self[0](images)
        self[1](maps)
        return maps


class ActivatingTwice(nn.Sequential):
    """One activation serves two maps."""

    def forward(self, images):
        return self[1](self[0](images)) + self[1](images)


def convolution(**options) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, **{"padding": 1} | options)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, inputs, output: None)
    return module


@pytest.mark.parametrize(
    "trunk",
    [
        Reading(convolution(), nn.ReLU()),
        ReadingBefore(convolution(), nn.ReLU()),
        ReadingBefore(convolution(), nn.ReLU(inplace=True)),
        Returning(convolution(), nn.ReLU()),
        ActivatingTwice(convolution(), nn.ReLU()),
        nn.Sequential(convolution(padding_mode="reflect"), nn.ReLU()),
        nn.Sequential(convolution(padding="same"), nn.ReLU()),
        nn.Sequential(hooked(convolution()), nn.ReLU()),
        nn.Sequential(convolution(), hooked(nn.ReLU())),
        nn.Sequential(convolution(), nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(convolution(), nn.Hardtanh(-1, 6)),
    ],
)
def test_activation_stays_where_it_does_not_read_the_convolution_alone(trunk):
    assert folds_of(trunk.eval(), 3, 8).activated == ()


@pytest.mark.parametrize("shape", [Reading, Returning])
@torch.no_grad()
def test_what_is_read_after_an_activation_in_place_is_the_activated_map(shape):
    torch.manual_seed(0)
    trunk, images = shape(convolution(), nn.ReLU(inplace=True)).eval(), torch.randn(2, 3, 8, 8)
    expected = trunk(images)
    pairs = folds_of(trunk, 3, 8).activated
    assert pairs == (("0", "1"),)
    activate(trunk, pairs)
    torch.testing.assert_close(trunk(images), expected, rtol=0, atol=0)


def test_every_activation_has_its_operation():
    assert set(POINTWISE) == set(ACTIVATIONS)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices_keep_their_activations(device):
    assert not inference.can_activate(device, "float32")

"""Folding of batch norms: equal to the unfolded network to rounding, and never where something else reads the map."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn

from egal_bench.models.checked_folds import disturb
from egal_bench.models.folding import folded
from egal_bench.models.folds import Folds, folds_of
from egal_bench.models.network import build

# backbone → pixels per side, norms behind a convolution, norms with ReLU before one, norms that stay
FAMILIES = {
    "small-cnn": (32, 4, 0, 0),
    "resnet18": (64, 20, 0, 0),
    "densenet121": (64, 59, 61, 1),
    "efficientnet_lite0": (64, 49, 0, 0),
    "mobilenetv3_small_050": (64, 34, 0, 0),
    "vgg11_bn": (32, 8, 0, 0),
    "repvgg_a0": (64, 44, 0, 17),
    "resnetv2_50": (64, 32, 12, 5),
    "convnext_atto": (64, 0, 0, 0),
}
UNFOLDED = {nn.BatchNorm2d.forward, BatchNormAct2d.forward}


def relative_error(maps: torch.Tensor, exact: torch.Tensor) -> float:
    return float((maps.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("backbone", FAMILIES)
@torch.no_grad()
def test_folded_network_agrees_with_the_unfolded_one_to_rounding(backbone):
    side, behind, before, left = FAMILIES[backbone]
    trunk = build(backbone, 3, image_channels=3, image_size=side, size=None, seed=0).trunk.eval()
    disturb(trunk, torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    exact, unfolded = copy.deepcopy(trunk).double()(images.double()), trunk(images)
    folds = folds_of(trunk, 3, side)
    copied = folded(trunk, folds)
    assert (len(folds.behind), len(folds.before)) == (behind, before)
    assert sum(type(module).forward in UNFOLDED for module in copied.modules()) == left
    assert relative_error(copied(images), exact) < 3 * relative_error(unfolded, exact) < 1e-5


@given(
    slope=st.sampled_from((-1.5, -1e-3, -1e-40, 0.0, 1e-40, 1e-20, 1e-3, 2.0)), offset=st.sampled_from((-1.0, 0.0, 0.7))
)
@torch.no_grad()
def test_norm_with_relu_before_a_convolution_folds_for_every_sign_of_the_slope(slope, offset):
    torch.manual_seed(0)
    trunk = nn.Sequential(BatchNormAct2d(4), nn.Conv2d(4, 3, 1)).eval()
    trunk[0].weight.data[:], trunk[0].bias.data[:] = slope, offset
    folds = folds_of(trunk, 4, 8)
    assert folds == Folds(before=(("0", "1"),), autocast=("1",))
    images = torch.randn(2, 4, 8, 8)
    exact = copy.deepcopy(trunk).double()(images.double())
    torch.testing.assert_close(folded(trunk, folds)(images).double(), exact, rtol=1e-5, atol=1e-5)


class ReadTwice(nn.Sequential):
    """The map of the convolution is also added to the result."""

    def forward(self, images):
        maps = self[0](images)
        return self[1](maps) + maps


class CalledTwice(nn.Sequential):
    """The convolution has two norms."""

    def forward(self, images):
        return self[1](self[0](images)) + self[2](self[0](images))


class NormShared(nn.Sequential):
    """Two convolutions have the same norm."""

    def forward(self, images):
        return self[2](self[0](images)) + self[2](self[1](images))


class ReadAside(nn.Sequential):
    """The trunk returns the map of the norm; what the convolution makes of it is not used."""

    def forward(self, images):
        maps = self[0](images)
        self[1](maps)
        return maps


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised first."""

    def forward(self, images):
        return nn.functional.conv2d(images, self.weight / self.weight.std(), self.bias, padding=1)


class Doubled(nn.BatchNorm2d):
    """A norm with a forward pass of its own."""

    def forward(self, maps):
        return 2 * super().forward(maps)


class MapIsReturned(nn.Module):
    """The input of the convolution is a part of the map that the trunk returns."""

    def __init__(self):
        super().__init__()
        self.norm, self.convolution = BatchNormAct2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, images):
        maps = self.norm(images)
        return torch.cat([maps, self.convolution(maps)], 1)


def norm_before(convolution: nn.Conv2d) -> nn.Sequential:
    """Return a norm with ReLU and the convolution behind it."""
    return nn.Sequential(BatchNormAct2d(4), convolution)


@pytest.mark.parametrize(
    "trunk",
    [
        norm_before(nn.Conv2d(4, 3, 3, padding=1)),
        norm_before(nn.Conv2d(4, 4, 1, groups=2)),
        ReadAside(*norm_before(nn.Conv2d(4, 3, 1))),
    ],
    ids=["padding", "groups", "map is returned"],
)
def test_nothing_folds_into_a_convolution_that_cannot_take_over_the_norm(trunk):
    assert not folds_of(trunk, 4, 8).change_sums


def convolution() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


@pytest.mark.parametrize(
    "trunk",
    [
        ReadTwice(convolution(), nn.BatchNorm2d(3)),
        CalledTwice(convolution(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)),
        NormShared(convolution(), convolution(), nn.BatchNorm2d(3)),
        nn.Sequential(Standardised(3, 3, 3), nn.BatchNorm2d(3)),
        nn.Sequential(convolution(), Doubled(3)),
        nn.Sequential(convolution(), nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(convolution(), nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)),
        MapIsReturned(),
    ],
    ids=lambda trunk: type(trunk).__name__ + "-" + type(list(trunk.children())[-1]).__name__,
)
def test_nothing_folds_where_the_norm_alone_does_not_read_the_convolution(trunk):
    folds = folds_of(trunk, 3, 8)
    assert (folds.behind, folds.before) == ((), ())


def test_trunk_that_needs_data_stays_unfolded():
    class Branching(nn.Sequential):
        def forward(self, images):
            return super().forward(images) if images.mean() > -1e9 else images

    assert not folds_of(Branching(convolution(), nn.BatchNorm2d(3)), 3, 8).change_sums


def test_folding_leaves_the_network_as_it_was():
    trunk = build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0).trunk.train()
    before = copy.deepcopy(trunk.state_dict())
    copied = folded(trunk, folds_of(trunk, 1, 32))
    assert trunk.training
    assert not copied.training
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert all(parameter.requires_grad for parameter in trunk.parameters())

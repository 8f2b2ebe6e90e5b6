"""Trunks on which a fold could go wrong unnoticed: the copy for passes computes what the trunk computes."""

import threading

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F

from egal_bench.errors import BenchError
from egal_bench.models import checked_folds
from egal_bench.models.checked_folds import disturb
from egal_bench.models.folds import Folds, folds_of
from egal_bench.models.heads import LinearHead
from egal_bench.models.inference import inference_network
from egal_bench.models.network import Network

SIDE = 16


class Layers(nn.Module):
    """A convolution, its norm, an activation, another convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.last = nn.Conv2d(6, 6, 1)

    def forward(self, images):
        return self.last(self.act(self.norm(self.conv(images))))


class TiedWeights(Layers):
    """Two convolutions, each with a norm, share their weights."""

    def __init__(self):
        super().__init__()
        self.twin, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.twin.weight = self.conv.weight

    def forward(self, images):
        return super().forward(images) + self.second(self.twin(images))


class SecondNames(Layers):
    """The convolution and the norm are called by their second names."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(self.conv, self.norm, self.act, self.last)

    def forward(self, images):
        return self.body(images)


class UnregisteredNames(Layers):
    """The modules are called by a list that PyTorch does not see."""

    def __init__(self):
        super().__init__()
        self.layers = [self.conv, self.norm, self.act, self.last]

    def forward(self, images):
        for layer in self.layers:
            images = layer(images)
        return images


class WithoutBias(nn.Conv2d):
    """A convolution that never uses a bias."""

    def __init__(self):
        super().__init__(3, 6, 3, bias=False)

    def forward(self, images):
        return F.conv2d(F.pad(images, (1, 1, 1, 1)), self.weight)


class IgnoredBias(Layers):
    def __init__(self):
        super().__init__()
        self.conv = WithoutBias()


class HookOnNorm(Layers):
    def __init__(self):
        super().__init__()
        self.norm.register_forward_hook(lambda module, inputs, output: 2 * output)


class HookOnActivation(Layers):
    def __init__(self):
        super().__init__()
        self.norm = BatchNormAct2d(6)
        self.norm.act.register_forward_hook(lambda module, inputs, output: 2 * output)


class WeightNorm(Layers):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.weight_norm(self.conv)


class MapReturned(Layers):
    """The trunk returns what the convolution makes; the norm serves something else."""

    def forward(self, images):
        maps = self.conv(images)
        self.auxiliary = self.norm(maps)
        return maps


class NormInTraining(Layers):
    """The norm always uses the statistics of the batch."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self


class AsksForAttributes(Layers):
    """The forward pass reads attributes and types of its modules."""

    def forward(self, images):
        maps = self.norm(self.conv(images)) * self.conv.out_channels + self.norm.num_features
        return self.last(self.act(maps) if isinstance(self.act, nn.ReLU) else maps)


class KeepsItsLoss(Layers):
    """The trunk keeps a tensor of its graph, so that it cannot be copied."""

    def forward(self, images):
        maps = super().forward(images)
        self.auxiliary = maps.mean()
        return maps


class HasLock(Layers):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


TRUNKS = [
    TiedWeights, SecondNames, UnregisteredNames, IgnoredBias, HookOnNorm, HookOnActivation, WeightNorm, MapReturned,
    NormInTraining, AsksForAttributes, KeepsItsLoss, HasLock,
]  # fmt: skip


@pytest.mark.parametrize("build", TRUNKS, ids=lambda build: build.__name__)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_copy_computes_what_the_trunk_computes(build):
    torch.manual_seed(0)
    trunk = build()
    disturb(trunk, torch.Generator().manual_seed(0))
    network = Network(trunk, LinearHead(6, 2), [0.5] * 3, [0.25] * 3, SIDE)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    network.features(images).mean().backward()  # as training leaves it
    network.eval()
    with torch.no_grad():
        copied = inference_network(network, "cpu", "float32")
        torch.testing.assert_close(copied.features(images), network.features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "build",
    [TiedWeights, SecondNames, IgnoredBias, HookOnNorm, HookOnActivation, WeightNorm, MapReturned, NormInTraining],
    ids=lambda build: build.__name__,
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_fold_that_would_be_wrong_is_not_even_tried(build):
    assert folds_of(build(), 3, SIDE).behind == ()


def test_network_that_cannot_be_copied_is_not_compiled():
    network = Network(HasLock(), LinearHead(6, 2), [0.5] * 3, [0.25] * 3, SIDE)
    with pytest.raises(BenchError, match=r"--compile on: this network cannot be copied: .*give --compile off"):
        inference_network(network, "cpu", "float32", "on")


def test_a_trial_draws_nothing_from_the_random_generator():
    class Drawing(Layers):
        def forward(self, images):
            torch.rand(1)
            return super().forward(images)

    trunk = Drawing()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert checked_folds.checked_folds(trunk, 3, SIDE).change_sums
    assert torch.equal(torch.rand(3), expected)


def test_folds_that_change_a_map_are_discarded(monkeypatch):
    wrong = Folds(behind=(("conv", "norm"),), activated=(("last", "act"),), autocast=("conv",))
    monkeypatch.setattr(checked_folds, "folds_of", lambda *args: wrong)
    assert checked_folds.checked_folds(Layers(), 3, SIDE) == Folds(autocast=("conv",))


def test_right_folds_stand_the_trial_also_in_inference_mode():
    right = Folds(behind=(("conv", "norm"),), activated=(("conv", "act"),), autocast=("conv", "last"))
    trunk = Layers()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with torch.inference_mode():
        assert checked_folds.checked_folds(trunk, 3, SIDE) == right
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


@torch.no_grad()
def test_in_bfloat16_a_norm_before_a_convolution_errs_no_more_than_autocast():
    """Its offset is large beside its slope, so that its constant has to cancel what the bound lets through."""
    torch.manual_seed(0)
    norm = BatchNormAct2d(512)
    norm.bias.data.fill_(-3.0)
    trunk = nn.Sequential(norm, nn.Conv2d(512, 32, 1)).eval()
    network = Network(trunk, LinearHead(32, 2), [0.5] * 3, [0.25] * 3, 8).eval()
    assert network.trunk is trunk
    maps = torch.randn(4, 512, 8, 8)
    exact = trunk.double()(maps.double())
    trunk.float()
    network.__dict__["folds"] = Folds(before=(("0", "1"),), autocast=("1",))
    copied = inference_network(network, "cpu", "bfloat16").trunk
    with torch.autocast("cpu", torch.bfloat16):
        errors = [float((each(maps.bfloat16()).double() - exact).norm()) for each in (copied, trunk)]
    assert errors[0] < 1.1 * errors[1]

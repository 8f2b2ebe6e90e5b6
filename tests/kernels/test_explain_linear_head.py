"""`linear_head`: what it takes is global average pooling and one linear map, and nothing else."""

import pytest
import timm
import torch
from timm.layers import ClassifierHead, NormMlpClassifierHead, SelectAdaptivePool2d
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from egal_kernels import acquire, explain, linear_head, pack_roi

C, K = 6, 4


def seq(*modules):
    return nn.Sequential(*modules).eval()


def gap():
    return nn.AdaptiveAvgPool2d(1)


def fc():
    return nn.Linear(C, K)


class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class SubSequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x).relu()


def hooked(register, **parts):
    head = seq(gap(), nn.Flatten(), fc())
    getattr(head[2], register)(lambda module, args, output=None: None)
    return head


def patched():
    head = seq(gap(), nn.Flatten(), fc())
    head[2].forward = lambda x: nn.Linear.forward(head[2], x).tanh()
    return head


def resnet_head():
    net = timm.create_model("resnet18", num_classes=K)
    return seq(net.global_pool, net.fc)


TAKEN = {
    "pool, flatten, linear": lambda: seq(gap(), nn.Flatten(), fc()),
    "in training mode, without dropout": lambda: seq(gap(), nn.Flatten(), fc()).train(),
    "pool of (1, 1)": lambda: seq(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1), fc()),
    "no bias": lambda: seq(gap(), nn.Flatten(), nn.Linear(C, K, bias=False)),
    "nested, dropout in eval": lambda: seq(seq(gap(), nn.Flatten()), nn.Dropout(0.5), seq(nn.Identity(), fc())),
    "dropout of 0 in training": lambda: seq(gap(), nn.Flatten(), nn.Dropout(0.0), fc()).train(),
    "pool, 1×1 conv, flatten": lambda: seq(gap(), nn.Conv2d(C, K, 1), nn.Flatten()),
    "1×1 conv, pool, flatten": lambda: seq(nn.Conv2d(C, K, 1), gap(), nn.Flatten()),
    "timm's pool": lambda: seq(SelectAdaptivePool2d(pool_type="avg", flatten=True), fc()),
    "timm's fast pool": lambda: seq(SelectAdaptivePool2d(pool_type="fast", flatten=True), fc()),
    "timm's pool, flattened later": lambda: seq(SelectAdaptivePool2d(pool_type="fastavg"), nn.Flatten(), fc()),
    "timm's ClassifierHead": lambda: ClassifierHead(C, K, drop_rate=0.3).eval(),
    "timm's ClassifierHead, fast": lambda: ClassifierHead(C, K, pool_type="fastavg").eval(),
    "timm's ClassifierHead, conv": lambda: ClassifierHead(C, K, use_conv=True).eval(),
    "two poolings": lambda: seq(gap(), gap(), nn.Flatten(), fc()),
}
REFUSED = {
    "relu first": lambda: seq(nn.ReLU(), gap(), nn.Flatten(), fc()),
    "relu last": lambda: seq(gap(), nn.Flatten(), fc(), nn.ReLU()),
    "softmax": lambda: seq(gap(), nn.Flatten(), fc(), nn.Softmax(1)),
    "max pooling": lambda: seq(nn.AdaptiveMaxPool2d(1), nn.Flatten(), fc()),
    "pool to 2×1": lambda: seq(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(2 * C, K)),
    "pool of one axis": lambda: seq(nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(5 * C, K)),
    "local pooling": lambda: seq(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(C * 4, K)),
    "local, then global": lambda: seq(nn.AvgPool2d(2), gap(), nn.Flatten(), fc()),  # 5×5 drops a border
    "flatten without pooling": lambda: seq(nn.Flatten(), nn.Linear(C * 25, K)),
    "batch norm": lambda: seq(nn.BatchNorm2d(C), gap(), nn.Flatten(), fc()),
    "layer norm": lambda: seq(gap(), nn.Flatten(), nn.LayerNorm(C), fc()),
    "group norm": lambda: seq(nn.GroupNorm(2, C), gap(), nn.Flatten(), fc()),
    "two linear maps": lambda: seq(gap(), nn.Flatten(), nn.Linear(C, 8), nn.Linear(8, K)),
    "conv and linear": lambda: seq(nn.Conv2d(C, 8, 1), gap(), nn.Flatten(), nn.Linear(8, K)),
    "mlp": lambda: seq(gap(), nn.Flatten(), nn.Linear(C, 8), nn.ReLU(), nn.Linear(8, K)),
    "dropout in training": lambda: seq(gap(), nn.Flatten(), nn.Dropout(0.5), fc()).train(),
    "only dropout in training": lambda: seq(gap(), nn.Flatten(), nn.Dropout(0.5).train(), fc()).train(),
    "3×3 conv": lambda: seq(nn.Conv2d(C, K, 3), gap(), nn.Flatten()),
    "strided conv": lambda: seq(nn.Conv2d(C, K, 1, stride=2), gap(), nn.Flatten()),
    "padded conv": lambda: seq(nn.Conv2d(C, K, 1, padding=1), gap(), nn.Flatten()),
    "grouped conv": lambda: seq(nn.Conv2d(C, K, 1, groups=2), gap(), nn.Flatten()),
    "transposed conv": lambda: seq(nn.ConvTranspose2d(C, K, 1), gap(), nn.Flatten()),
    "conv without flatten": lambda: seq(gap(), nn.Conv2d(C, K, 1)),
    "linear along the width": lambda: seq(nn.Linear(5, 5), gap(), nn.Flatten()),
    "no linear map": lambda: seq(gap(), nn.Flatten()),
    "no pooling": lambda: fc(),
    "nothing": lambda: seq(),
    "flatten of another range": lambda: seq(gap(), nn.Flatten(0), fc()),
    "bilinear": lambda: seq(gap(), nn.Flatten(), nn.Bilinear(C, C, K)),
    "subclass of Linear": lambda: seq(gap(), nn.Flatten(), Subclass(C, K)),
    "subclass of Sequential": lambda: SubSequential(gap(), nn.Flatten(), fc()).eval(),
    "forward hook": lambda: hooked("register_forward_hook"),
    "forward pre-hook": lambda: hooked("register_forward_pre_hook"),
    "forward replaced": patched,
    "weight norm": lambda: seq(gap(), nn.Flatten(), parametrizations.weight_norm(fc())),
    "old spectral norm": lambda: seq(gap(), nn.Flatten(), spectral_norm(fc())),
    "pruned": lambda: seq(gap(), nn.Flatten(), prune.random_unstructured(fc(), "weight", 0.5)),
    "compiled": lambda: torch.compile(seq(gap(), nn.Flatten(), fc())),
    "timm's max pool": lambda: seq(SelectAdaptivePool2d(pool_type="max", flatten=True), fc()),
    "timm's avgmax pool": lambda: seq(SelectAdaptivePool2d(pool_type="avgmax", flatten=True), fc()),
    "timm's fastmax pool": lambda: seq(SelectAdaptivePool2d(pool_type="fastmax", flatten=True), fc()),
    "timm's catavgmax pool": lambda: seq(
        SelectAdaptivePool2d(pool_type="catavgmax", flatten=True), nn.Linear(2 * C, K)
    ),
    "timm's pool of 2×2": lambda: seq(SelectAdaptivePool2d(2, "avg", flatten=True), nn.Linear(4 * C, K)),
    "timm's ClassifierHead, max": lambda: ClassifierHead(C, K, pool_type="max").eval(),
    "timm's ClassifierHead, NHWC": lambda: ClassifierHead(C, K, input_fmt="NHWC").eval(),
    "timm's ClassifierHead, no pool": lambda: ClassifierHead(C, K, pool_type="").eval(),
    "timm's ClassifierHead, no classes": lambda: ClassifierHead(C, 0).eval(),
    "timm's ClassifierHead, dropout in training": lambda: ClassifierHead(C, K, drop_rate=0.3).train(),
    "timm's NormMlpClassifierHead": lambda: NormMlpClassifierHead(C, K).eval(),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_linear_head_is_recognised_and_its_closed_form_holds(name):
    torch.manual_seed(0)
    head = TAKEN[name]().double()
    features = torch.randn(3, C, 5, 5, dtype=torch.float64)
    weight, bias = linear_head(head)
    assert weight.shape == (K, C)
    assert (bias is None) == (name == "no bias")
    logits = head(features)
    expected = nn.functional.linear(features.mean((2, 3)), weight, bias)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    roi = pack_roi(torch.rand(3, 20, 20) < 0.5)
    ours, other = acquire(features, weight, bias, roi), explain(head.eval(), features)
    any_head = acquire(other.features, None, None, roi, alpha=other.alpha, logits=other.logits)
    for field in ("logits", "soft_intersection", "soft_area"):
        torch.testing.assert_close(getattr(ours, field), getattr(any_head, field), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_only_look_linear_are_refused(name):
    assert linear_head(REFUSED[name]()) is None


def test_the_parameters_of_a_timm_head_are_returned_themselves():
    head = resnet_head()
    weight, bias = linear_head(head)
    weight.sum().backward()
    assert head[1].weight.grad.unique().tolist() == [1.0]
    assert bias is head[1].bias

"""Batch norms become part of a convolution: the arithmetic.

In evaluation mode a batch norm is one slope s and one offset t per channel: s·x + t.

- Behind a convolution with weights W and bias b, it gives a convolution with weights s·W and bias s·b + t.
- Before a ReLU and a convolution without padding, as in a DenseNet, ReLU(s·x + t) is s·max(x, −t/s) + t for s > 0,
  s·min(x, −t/s) + t for s < 0, and max(t, 0) for s = 0. The slope and the constant become part of the convolution, and
  one pass over the map remains of two.

Which norms can be folded, `folds` says.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.models.folds import Folds, has_activation

NEGLIGIBLE = 1e12  # an offset that exceeds the slope so far is all that float32 keeps; their ratio could overflow


class Clamp(nn.Module):
    """What remains of a norm with ReLU before a convolution: lowest ≤ x ≤ highest, per channel.

    Args:
        lowest: [C].
        highest: [C]; infinite for a channel with a slope of 0 or more, which is nearly every channel in practice.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, lowest: Tensor, highest: Tensor) -> None:
        super().__init__()
        self.register_buffer("lowest", lowest[:, None, None])
        self.register_buffer("highest", highest[:, None, None])
        self.bounded_above = not bool(highest.isposinf().all())

    def forward(self, maps: Tensor) -> Tensor:
        """Return `maps` [B, C, h, w] within the bounds, in their own precision."""
        maps = torch.maximum(maps, self.lowest.to(maps.dtype))  # several times as fast as `clamp` in bfloat16
        if self.bounded_above:
            torch.minimum(maps, self.highest.to(maps.dtype), out=maps)
        return maps


def folded(trunk: nn.Module, folds: Folds) -> nn.Module:
    """Return a copy of `trunk` in evaluation mode whose norms are folded. Slopes and sums are computed in float64."""
    trunk = copy.deepcopy(trunk).eval().requires_grad_(False)
    replaced: dict[nn.Module, nn.Module] = {}
    for norm_name, convolution_name in folds.before:
        norm, convolution = trunk.get_submodule(norm_name), trunk.get_submodule(convolution_name)
        slope, offset = _slope_and_offset(norm)
        slope = torch.where(slope.abs() * NEGLIGIBLE < offset.abs(), 0.0, slope)
        _scale(convolution, slope[:, None, None], _bias_before(convolution, slope, offset))
        replaced[norm] = _clamp(slope, offset)
    for convolution_name, norm_name in folds.behind:
        convolution, norm = trunk.get_submodule(convolution_name), trunk.get_submodule(norm_name)
        slope, offset = _slope_and_offset(norm)
        _scale(convolution, slope[:, None, None, None], _bias_behind(convolution, slope, offset))
        replaced[norm] = _without_norm(norm)
    for parent in list(trunk.modules()):
        for name, child in parent.named_children():
            if child in replaced:
                setattr(parent, name, replaced[child])
    return trunk


def _slope_and_offset(norm: Any) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a batch norm in evaluation mode, float64 [C] each."""
    slope = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        slope = slope * norm.weight.double()
    offset = -norm.running_mean.double() * slope
    return slope, offset if norm.bias is None else offset + norm.bias.double()


def _bias_before(convolution: Any, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the bias that takes over the constant of a norm with ReLU before the convolution, float64 [out]."""
    constant = torch.where(slope == 0, offset.clamp(min=0), offset)
    bias = torch.einsum("oikl,i->o", convolution.weight.double(), constant)
    return bias if convolution.bias is None else bias + convolution.bias.double()


def _bias_behind(convolution: Any, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the bias that takes over slope and offset of a norm behind the convolution, float64 [out]."""
    return offset if convolution.bias is None else convolution.bias.double() * slope + offset


def _clamp(slope: Tensor, offset: Tensor) -> Clamp:
    edge = torch.where(slope == 0, 0.0, -offset / slope)
    lowest = torch.where(slope < 0, -torch.inf, edge)
    highest = torch.where(slope < 0, edge, torch.inf)
    return Clamp(lowest.float(), highest.float())


def _scale(convolution: Any, scale: Tensor, bias: Tensor) -> None:
    """Multiply the weights of a convolution by `scale` and give it this bias."""
    convolution.weight.data.mul_(scale.to(convolution.weight.dtype))
    convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)


def _without_norm(norm: Any) -> nn.Module:
    """Return what a norm does besides its normalisation."""
    if not has_activation(norm):
        return nn.Identity()
    return norm.act if type(norm.drop) is nn.Identity else nn.Sequential(norm.drop, norm.act)

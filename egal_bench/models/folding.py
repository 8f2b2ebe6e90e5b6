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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.models.folds import Folds, has_activation

NEGLIGIBLE = 1e12  # an offset that exceeds the slope so far is all that float32 keeps; their ratio could overflow


def folded(trunk: nn.Module, folds: Folds) -> nn.Module:
    """Return a copy of `trunk` in evaluation mode whose norms are folded. Slopes and sums are computed in float64.

    All modules stay where they are; those whose work a convolution has taken over do only what remains of it.
    """
    trunk = copy.deepcopy(trunk).eval().requires_grad_(False)
    for norm_name, convolution_name in folds.before:
        norm, convolution = trunk.get_submodule(norm_name), trunk.get_submodule(convolution_name)
        slope, offset = _slope_and_offset(norm)
        slope = torch.where(slope.abs() * NEGLIGIBLE < offset.abs(), 0.0, slope)
        _scale(convolution, slope[:, None, None], _bias_before(convolution, slope, offset))
        _leave_clamp(norm, slope, offset)
    for convolution_name, norm_name in folds.behind:
        convolution, norm = trunk.get_submodule(convolution_name), trunk.get_submodule(norm_name)
        slope, offset = _slope_and_offset(norm)
        _scale(convolution, slope[:, None, None, None], _bias_behind(convolution, slope, offset))
        with_forward(norm, _activate if has_activation(norm) else pass_on)
    return trunk


def with_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    """Give `module` this forward pass; its attributes and its type for `isinstance` stay."""
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def pass_on(module: Any, maps: Tensor) -> Tensor:
    """Return `maps`: the forward pass of a module whose work a convolution has taken over."""
    return maps


def _activate(norm: Any, maps: Tensor) -> Tensor:
    return norm.act(norm.drop(maps))


def _clamp(norm: Any, maps: Tensor) -> Tensor:
    """Return `maps` [B, C, h, w] between the bounds of a norm with ReLU before a convolution."""
    maps = torch.maximum(maps, norm.lowest)  # faster than `clamp`
    if norm.bounded_above:
        torch.minimum(maps, norm.highest, out=maps)
    return maps


def _slope_and_offset(norm: Any) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a batch norm in evaluation mode, float64 [C] each."""
    slope = (_double(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        slope = slope * _double(norm.weight)
    offset = -_double(norm.running_mean) * slope
    return slope, offset if norm.bias is None else offset + _double(norm.bias)


def _double(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64, on the CPU if it was on MPS, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _bias_before(convolution: Any, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the bias that takes over the constant of a norm with ReLU before the convolution, float64 [out]."""
    constant = torch.where(slope == 0, offset.clamp(min=0), offset)
    bias = torch.einsum("oikl,i->o", _double(convolution.weight), constant)
    return bias if convolution.bias is None else bias + _double(convolution.bias)


def _bias_behind(convolution: Any, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the bias that takes over slope and offset of a norm behind the convolution, float64 [out]."""
    return offset if convolution.bias is None else _double(convolution.bias) * slope + offset


def _leave_clamp(norm: Any, slope: Tensor, offset: Tensor) -> None:
    """Let `norm`, with ReLU, do what remains of it before the convolution: lowest ≤ x ≤ highest, per channel."""
    edge = torch.where(slope == 0, 0.0, -offset / slope)
    bounds = {
        "lowest": torch.where(slope < 0, -torch.inf, edge),
        "highest": torch.where(slope < 0, edge, torch.inf),  # infinite for nearly every channel in practice
    }
    for name, bound in bounds.items():
        norm.register_buffer(name, bound.float().to(norm.running_mean.device)[:, None, None])
    norm.bounded_above = bool((slope < 0).any())
    with_forward(norm, _clamp)


def _scale(convolution: Any, scale: Tensor, bias: Tensor) -> None:
    """Multiply the weights of a convolution by `scale` and give it this bias."""
    weight = convolution.weight
    weight.data.mul_(scale.to(weight.device, weight.dtype))
    convolution.bias = nn.Parameter(bias.to(weight.device, weight.dtype), requires_grad=False)

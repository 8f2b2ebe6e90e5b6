"""Convolutions that apply the activation behind them to each value before it is written, on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.models.folding import pass_on, with_forward

# what oneDNN calls each of `folds.ACTIVATIONS`, its bounds, and its variant
POINTWISE: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.ReLU: ("relu", [], ""), nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
}  # fmt: skip


def can_activate(device: str, precision: str) -> bool:
    """Return whether this machine and this version of PyTorch have the operation on `device`."""
    operations: Any = torch.ops.mkldnn
    if device != "cpu" or not torch._C._has_mkldnn or not hasattr(operations, "_convolution_pointwise"):
        return False
    return precision != "bfloat16" or operations._is_mkldnn_bf16_supported()


def activate(trunk: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Let convolutions of `trunk` apply the activations behind them, which then pass on what they get.

    Args:
        trunk: in evaluation mode, with folded norms; it is changed.
        pairs: `Folds.activated` of it.
    """
    for convolution_name, activation_name in pairs:
        convolution: Any = trunk.get_submodule(convolution_name)
        activation: Any = trunk.get_submodule(activation_name)
        activation = getattr(activation, "act", activation)  # of a norm with activation, the latter remains
        if convolution.weight.dtype in (torch.float32, torch.bfloat16):
            convolution.pointwise = POINTWISE[type(activation)]
            with_forward(convolution, _convolve)
            with_forward(activation, pass_on)


def _convolve(convolution: Any, maps: Tensor) -> Tensor:
    """Return the activated map [B, C', h', w'] of maps [B, C, h, w], in the precision of the weights.

    One operation of oneDNN, which PyTorch's compiler calls in the same way, writes the map once and does not read it.
    """
    weight, bias = convolution.weight, convolution.bias
    sizes = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
    operation = torch.ops.mkldnn._convolution_pointwise
    return operation(maps.to(weight.dtype), weight, bias, *sizes, *convolution.pointwise)

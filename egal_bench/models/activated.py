"""Convolutions that apply the activation behind them to each value before it is written, on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# what oneDNN calls each of `folds.ACTIVATIONS`, its bounds, and its variant
POINTWISE: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.ReLU: ("relu", [], ""), nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
}  # fmt: skip


class ActivatedConvolution(nn.Module):
    """A convolution and the activation behind it as one operation of oneDNN: the map is written once, and not read.

    The numbers are the same. PyTorch has this operation for its compiler, which calls it in the same way.

    Args:
        convolution: with padding by zeros.
        activation: of a type in POINTWISE.
    """

    def __init__(self, convolution: Any, activation: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.sizes = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        self.pointwise = POINTWISE[type(activation)]

    def forward(self, maps: Tensor) -> Tensor:
        """Return the activated map [B, C', h', w'] of maps [B, C, h, w], in the precision of the weights."""
        maps = maps.to(self.weight.dtype)
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *self.sizes, *self.pointwise)


def can_activate(device: str, precision: str) -> bool:
    """Return whether this machine and this version of PyTorch have the operation on `device`."""
    operations: Any = torch.ops.mkldnn
    if device != "cpu" or not torch._C._has_mkldnn or not hasattr(operations, "_convolution_pointwise"):
        return False
    return precision != "bfloat16" or operations._is_mkldnn_bf16_supported()


def activate(trunk: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Replace convolutions of `trunk` by ActivatedConvolutions, and the activations behind them by nothing.

    Args:
        trunk: in evaluation mode, with folded norms; it is changed.
        pairs: `Folds.activated` of it.
    """
    for convolution, activation in pairs:
        fused = ActivatedConvolution(trunk.get_submodule(convolution), trunk.get_submodule(activation))
        for name, module in ((convolution, fused), (activation, nn.Identity())):
            parent, _, child = name.rpartition(".")
            setattr(trunk.get_submodule(parent), child, module)

"""The last norm of a DenseNet as a part of the head, so that the layer before this norm can be explained.

The input of the last norm of a DenseNet holds, as its last channels, the output of the last convolution of the last
dense block. Nothing but the norm lies between that convolution and the pooling. With its running statistics the norm
is one slope and one offset per channel, so it may as well act on the pooled features. The Grad-CAM of that convolution
then has a closed form: the alpha behind the norm, times the slope, for those channels alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.errors import BenchError


class LastNorm(nn.Module):
    """A batch norm that acts on pooled features, always with its running statistics; weight and bias are trained.

    Args:
        norm: the batch norm of the trunk, whose tensors it takes over.
        explained: number of channels to explain, the last ones.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, explained: int) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.first = norm.num_features - explained

    @property
    def slope(self) -> Tensor:
        """Return the slope of each channel, float [C]."""
        return self.weight * (self.running_var + self.eps).rsqrt()

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the pooled features behind the norm, [B, C], of those before it."""
        return (pooled - self.running_mean) * self.slope + self.bias

    def before(self, alpha: Tensor) -> Tensor:
        """Return the alpha before the norm, [B, C], of that behind it: 0 for the channels that are not explained."""
        explained = torch.arange(alpha.shape[1], device=alpha.device) >= self.first
        return alpha * self.slope * explained


def taken_from(trunk: Any, layer: str, backbone: str) -> LastNorm:
    """Return the last norm of a DenseNet of timm as a LastNorm, and leave it and its ReLU out of the trunk.

    Args:
        trunk: changed; it then gives the map before its last norm.
        layer: name of the convolution to explain, such as `denseblock4.denselayer16.conv2`.
        backbone: name of the trunk, for messages.

    Raises:
        BenchError: the trunk is no DenseNet of timm, or `layer` is not its last convolution.
    """
    children = list(trunk.features.named_children()) if hasattr(trunk, "features") else []
    norm = children[-1][1] if children else None
    blocks = [(name, child) for name, child in children if name.startswith("denseblock")]
    if not blocks or not isinstance(norm, nn.BatchNorm2d):
        raise BenchError(
            f"--explain-layer {layer}: only the last convolution of a DenseNet can be named, and {backbone} is none; "
            "give --explain-layer none to explain the map that is pooled"
        )
    block, last_block = blocks[-1]
    last_layer, dense_layer = list(last_block.named_children())[-1]
    last = f"{block}.{last_layer}.conv2"
    if layer.removeprefix("features.") != last:
        raise BenchError(f"--explain-layer {layer}: only the last convolution of {backbone} can be named: {last}")
    setattr(trunk.features, children[-1][0], nn.Identity())
    convolution: Any = dense_layer
    return LastNorm(norm, convolution.conv2.out_channels)

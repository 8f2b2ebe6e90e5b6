"""Models whose output is brought into the form [B, C, h, w], a map of features over positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.errors import BenchError, UserCodeError
from egal_bench.models.devices import out_of_memory


class Adapted(nn.Module):
    """A trunk around another module, `model`, whose own names for its tensors are those of checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model


class PatchGrid(Adapted):
    """A vision transformer of timm as a trunk: its patch tokens after the final norm, as a map.

    Tokens that belong to no patch (class, distillation and register tokens) are dropped. Some members of timm take
    the mean of the tokens first and then the norm, which timm calls `fc_norm`; here each token passes that norm, so
    that the mean of the map still is what the head acts on.

    Args:
        model: gives tokens [B, prefix + h·h, C] by its `forward_features`, the rows of the grid one after another.
        prefix: number of leading tokens that belong to no patch.
        side: h.
    """

    def __init__(self, model: nn.Module, prefix: int, side: int) -> None:
        super().__init__(model)
        self.prefix, self.side = prefix, side

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, h] of images [B, 3, H, H], in channels_last layout."""
        tokens = self.model.forward_features(images)
        if hasattr(self.model, "fc_norm"):
            tokens = self.model.fc_norm(tokens)
        grid = tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (self.side, self.side))
        return grid.contiguous(memory_format=torch.channels_last)


class ChannelsFirst(Adapted):
    """A network of timm with a channels-last map [B, h, w, C], such as Swin, as a trunk."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of images [B, 3, H, W]."""
        return self.model.forward_features(images).permute(0, 3, 1, 2)


class UserModel(Adapted):
    """A module of the user's own factory as a trunk; an exception inside it names the backbone and its place.

    Args:
        model: maps images float [B, in_channels, H, W] to a map [B, C, h, w].
        backbone: the name `module:factory`.
    """

    def __init__(self, model: nn.Module, backbone: str) -> None:
        super().__init__(model)
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of images [B, in_channels, H, W]. Raises UserCodeError."""
        try:
            return self.model(images)
        except Exception as error:
            if isinstance(error, BenchError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
                raise  # the pass over the pool answers a full memory with a smaller batch
            raise UserCodeError.of(f"backbone {self.backbone!r}", error) from error


def timm_layout(model: nn.Module, output: object, backbone: str) -> nn.Module:
    """Return a trunk that gives the features of a timm network as a map [B, C, h, w].

    Args:
        model: the network.
        output: what its `forward_features` returned for one image.
        backbone: its name.

    Raises:
        BenchError: the output has no positions, or timm does not say where they lie.
    """
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    channels = model.num_features
    channels_last = getattr(model, "output_fmt", None) == "NHWC"
    if len(shape) == 4 and not channels_last and shape[1] == channels:
        model.forward = model.forward_features  # type: ignore[assignment]
        return model
    if len(shape) == 4 and shape[3] == channels:
        return ChannelsFirst(model)
    prefix = getattr(model, "num_prefix_tokens", None)
    if len(shape) == 3 and shape[2] == channels and prefix is not None:
        side = math.isqrt(max(shape[1] - prefix, 0))
        if side and side * side == shape[1] - prefix:
            return PatchGrid(model, prefix, side)
    what = f"its output is {shape}" if shape else f"its output is a {type(output).__name__}"
    raise BenchError(
        f"--backbone {backbone} has no feature map [B, C, h, w] and no square grid of patch tokens to explain "
        f"({what}): choose a convolutional network, or a vision transformer such as vit_small_patch16_224"
    )


def check_user_map(output: object, backbone: str) -> Tensor:
    """Return what a user's module gave for one square image. Raises BenchError unless it is a map [1, C, h, w]."""
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[0] != 1 or not output.numel():
        raise BenchError(f"--backbone {backbone}: returns {shape} for one image, expected a map [1, C, h, w]")
    _, channels, height, width = output.shape
    if channels == height != width:
        raise BenchError(
            f"--backbone {backbone}: returns {shape} for one square image, which looks like a channels-last map; "
            "return map.permute(0, 3, 1, 2)"
        )
    return output

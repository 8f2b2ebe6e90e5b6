"""Networks: a trunk to a feature map [B, C, h, w], then global average pooling and a head.

The trunk is a timm network up to its pooling: up to its last map that has positions. Some families put more behind that
map: a norm (ConvNeXt), a convolution of pooled features (MobileNetV3 and V4, GhostNet) or two layers of 4096 (VGG).
These layers are left out, so that one closed form explains every network. The map of a vision transformer is the grid
of its patch tokens after the final norm (see `layouts.PatchGrid`). A network without such a map is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.models.checked_folds import checked_folds
from egal_bench.models.fitting import load_weights
from egal_bench.models.folds import Folds
from egal_bench.models.heads import Head, LinearHead, PrototypicalHead
from egal_bench.models.last_norm import taken_from
from egal_bench.models.trunks import trunk_of

Tell = Callable[[str], None]


def _silent(line: str) -> None:
    """Say nothing, since a network is built many times and the user needs to be told once."""


class Network(nn.Module):
    """A trunk, a head that acts on the mean of the trunk's map, and the normalisation of the input.

    Args:
        trunk: a module from images float [B, in_channels, H, W] to features [B, C, h, w].
        head: a module from the pooled features [B, C] to logits [B, K].
        mean: per input channel, of images scaled to 0..1.
        std: per input channel, of images scaled to 0..1.
        size: pixels per side to which images are resized for the trunk; None: the images stay as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, head: Head, mean: list[float], std: list[float], size: int | None) -> None:
        super().__init__()
        self.trunk, self.head, self.size = trunk, head, size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return the feature maps [B, C, h, w] of images uint8 or uint16 [B, 1 or 3, H, W].

        Grey images are repeated over the trunk's input channels.
        """
        return self.trunk(self.prepared(images))

    @cached_property
    def folds(self) -> Folds:
        """Return which batch norms of the trunk can be folded for inference; none without a fixed size."""
        return checked_folds(self.trunk, self.mean.shape[1], self.size) if self.size else Folds()

    def prepared(self, images: Tensor) -> Tensor:
        """Return `images` as the trunk takes them: float32 [B, in_channels, H, W], channels_last, normalised."""
        x = images.float() / torch.iinfo(images.dtype).max
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        x = (x.expand(-1, self.mean.shape[1], -1, -1) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of images uint8 or uint16 [B, 1 or 3, H, W]."""
        return self.head(self.features(images).mean((2, 3)))


def of_config(
    config: Config, dataset: Dataset, seed: int, weights: dict[str, Tensor] | None = None, tell: Tell = _silent
) -> Network:
    """Return the Network that `config` describes for the images of `dataset`; see `build`."""
    image = dataset.shards.manifest.image
    return build(
        config.backbone, dataset.classes, head=config.head, explain_layer=config.explain_layer,
        image_channels=image.channels, image_size=image.size, size=config.size, seed=seed, weights=weights, tell=tell,
    )  # fmt: skip


def build(
    backbone: str, classes: int, *, image_channels: int, image_size: int, size: int | None, seed: int,
    weights: dict[str, Tensor] | None = None, tell: Tell = _silent, head: str = "linear",
    explain_layer: str | None = None,
) -> Network:  # fmt: skip
    """Return the Network of `backbone` with a head, in evaluation-ready channels_last layout.

    Args:
        backbone: `small-cnn`, the name of a timm model or `module:factory`.
        classes: number of outputs, K.
        image_channels: channels of the packed images, 1 or 3.
        image_size: pixels per side of the packed images.
        size: pixels per side that the trunk sees; None: `image_size`.
        seed: seed of the random initialisation.
        weights: state dict of a checkpoint; None: random initialisation.
        tell: called with one line that says how the weights were adapted, where they were.
        head: `linear` or `prototypical`.
        explain_layer: the layer to explain, of a DenseNet with a prototypical head (see `last_norm`); None: the map
            that is pooled.

    Raises:
        BenchError: a backbone that timm does not know (the message names the nearest), one without a spatial feature
            map, weights of another network, or a layer that cannot be explained.
        UserCodeError: the user's factory or module raised an exception.
    """
    with torch.random.fork_rng(devices=[]):  # initialisers draw from PyTorch's global generator, restored afterwards
        torch.manual_seed(seed)
        trunk = trunk_of(backbone, image_channels, size or image_size)
        if weights is not None:
            adapted = load_weights(trunk.module, weights, backbone, len(trunk.mean))
            if adapted:
                tell(f"--weights for {backbone}: {'; '.join(adapted)}")
        last_norm = taken_from(trunk.module, explain_layer, backbone) if explain_layer else None
        built: Head
        if head == "prototypical":
            built = PrototypicalHead(trunk.channels, classes, last_norm)
        else:
            built = LinearHead(trunk.channels, classes)
        network = Network(trunk.module, built, trunk.mean, trunk.std, size or image_size)
    return network.to(memory_format=torch.channels_last)

"""Networks: a convolutional trunk to a feature map [B, C, h, w], then global average pooling and a head.

The trunk is a timm network up to its pooling: up to its last map that has positions. Some families put more behind that
map: a norm (ConvNeXt), a convolution of pooled features (MobileNetV3 and V4, GhostNet) or two layers of 4096 (VGG).
These layers are left out, so that one closed form explains every network. A network without such a map is refused:
one that ends in tokens (ViT) or in a channels-last map (Swin).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError, brief, unknown
from egal_bench.models.heads import Head, LinearHead

SMALL_CNN = "small-cnn"


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


def of_config(config: Config, dataset: Dataset, seed: int, weights: dict[str, Tensor] | None = None) -> Network:
    """Return the Network that `config` describes for the images of `dataset`; see `build`."""
    image = dataset.shards.manifest.image
    return build(
        config.backbone, dataset.classes, image_channels=image.channels, image_size=image.size, size=config.size,
        seed=seed, weights=weights,
    )  # fmt: skip


def build(
    backbone: str, classes: int, *, image_channels: int, image_size: int, size: int | None, seed: int,
    weights: dict[str, Tensor] | None = None,
) -> Network:  # fmt: skip
    """Return the Network of `backbone` with a linear head, in evaluation-ready channels_last layout.

    Args:
        backbone: `small-cnn` or the name of a timm model.
        classes: number of outputs, K.
        image_channels: channels of the packed images, 1 or 3.
        image_size: pixels per side of the packed images.
        size: pixels per side that the trunk sees; None: `image_size`.
        seed: of the random initialisation.
        weights: state dict of the trunk; None: random initialisation.

    Raises:
        BenchError: a backbone that timm does not know (the message names the nearest), one without a spatial feature
            map, or weights of another network.
    """
    with torch.random.fork_rng(devices=[]):  # initialisers draw from PyTorch's global generator, restored afterwards
        torch.manual_seed(seed)
        if backbone == SMALL_CNN:
            trunk, mean, std = _small_cnn(image_channels), [0.5] * image_channels, [0.25] * image_channels
        else:
            trunk, mean, std = _timm_trunk(backbone)
        side = size or image_size
        channels = _map_channels(trunk, backbone, len(mean), side)
        if weights is not None:
            _load(trunk, weights, backbone)
        network = Network(trunk, LinearHead(channels, classes), mean, std, size)
    return network.to(memory_format=torch.channels_last)


def _small_cnn(image_channels: int) -> nn.Module:
    """Return a trunk of 16, 32, 64 and 64 channels at stride 8: a 64×64 image gives an 8×8 map."""
    layers: list[nn.Module] = []
    inputs = image_channels
    for out, kernel, stride, pooled in ((16, 5, 2, False), (32, 3, 1, True), (64, 3, 1, True), (64, 3, 1, False)):
        layers += [nn.Conv2d(inputs, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled
        inputs = out
    return nn.Sequential(*layers)


def _timm_trunk(name: str) -> tuple[nn.Module, list[float], list[float]]:
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        raise unknown("backbone", name, [SMALL_CNN, *timm.list_models()])
    trunk = timm.create_model(name, pretrained=False, num_classes=0)
    trunk.forward = trunk.forward_features
    data = resolve_model_data_config(trunk)
    return trunk, list(data["mean"]), list(data["std"])


def _map_channels(trunk: nn.Module, backbone: str, in_channels: int, side: int) -> int:
    """Return the number of channels of the trunk's map, and drop the layers that a forward pass does not reach.

    Both are found by one forward pass of a blank image.
    """
    reached: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, *_: reached.add(module)) for module in trunk.modules()]
    try:
        with torch.no_grad():
            out = trunk.eval()(torch.zeros(1, in_channels, side, side))
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"--backbone {backbone} cannot take {side}x{side} images: {brief(error)}") from None
    if out.ndim != 4 or out.shape[1] != getattr(trunk, "num_features", out.shape[1]):
        raise BenchError(
            f"--backbone {backbone} has no feature map [B, C, h, w] to explain (its output is {tuple(out.shape)}): "
            "choose a convolutional network"
        )
    for hook in hooks:
        hook.remove()
    for name, child in trunk.named_children():
        if reached.isdisjoint(child.modules()):
            setattr(trunk, name, nn.Identity())
    return int(out.shape[1])


def _load(trunk: nn.Module, weights: dict[str, Tensor], backbone: str) -> None:
    own = trunk.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    misshapen = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if missing or misshapen:
        name = (missing or misshapen)[0]
        why = f"have no tensor {name!r}" if missing else f"have {name!r} of shape {tuple(weights[name].shape)}"
        raise BenchError(f"--weights {why}, so they are not of {backbone}: name the backbone they were made for")
    trunk.load_state_dict({name: weights.get(name, value) for name, value in own.items()})

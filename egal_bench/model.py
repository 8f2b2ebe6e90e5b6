"""Networks: a convolutional trunk to a feature map [B, C, h, w], then global average pooling and a linear head.

The trunk is a timm network up to its pooling: its last map that has positions. What some families put behind it, a norm
(ConvNeXt), a convolution of pooled features (MobileNetV3 and V4, GhostNet) or two layers of 4096 (VGG), is left out, so
that one closed form explains them all. A network without such a map is refused: tokens (ViT), channels last (Swin).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.devices import keep_freed_memory
from egal_bench.errors import BenchError, brief, unknown

SMALL_CNN = "small-cnn"


class Network(nn.Module):
    """`trunk`, `head` and the input's normalisation; `head` acts on the mean of the map: a closed-form Grad-CAM.

    Args:
        trunk: images float [B, in_channels, H, W] -> features [B, C, h, w].
        channels: C. classes: K. mean, std: per input channel, of images scaled to 0..1.
        size: pixels a side that the trunk sees; None: what it is given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, trunk: nn.Module, channels: int, classes: int, mean: list[float], std: list[float], size: int | None
    ) -> None:
        super().__init__()
        self.trunk, self.head, self.size = trunk, nn.Linear(channels, classes), size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Feature maps [B, C, h, w] of images uint8 or uint16 [B, 1 or 3, H, W]; grey is repeated over the channels."""
        return self.trunk(self.prepared(images))

    def prepared(self, images: Tensor) -> Tensor:
        """The trunk's input, float32 [B, in_channels, H, W] in channels_last: resized, repeated, normalised."""
        x = images.float() / torch.iinfo(images.dtype).max
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        x = (x.expand(-1, self.mean.shape[1], -1, -1) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images uint8 or uint16 [B, 1 or 3, H, W]."""
        return self.head(self.features(images).mean((2, 3)))


def of_config(config: Config, dataset: Dataset, seed: int, weights: dict[str, Tensor] | None = None) -> Network:
    """The Network that a comparison configures for the images of `dataset`; see `build`."""
    image = dataset.shards.manifest.image
    return build(
        config.backbone, dataset.classes, image_channels=image.channels, image_size=image.size, size=config.size,
        seed=seed, weights=weights,
    )  # fmt: skip


def build(
    backbone: str, classes: int, *, image_channels: int, image_size: int, size: int | None, seed: int,
    weights: dict[str, Tensor] | None = None,
) -> Network:  # fmt: skip
    """The Network `backbone` with `classes` outputs, initialised from `seed`, its trunk from `weights` where given.

    Raises BenchError for a backbone unknown to timm (naming the nearest), one without a spatial feature map, or
    weights of another network.
    """
    keep_freed_memory()
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global RNG: fenced in
        torch.manual_seed(seed)
        if backbone == SMALL_CNN:
            trunk, mean, std = _small_cnn(image_channels), [0.5] * image_channels, [0.25] * image_channels
        else:
            trunk, mean, std = _timm_trunk(backbone)
        side = size or image_size
        channels = _map_channels(trunk, backbone, len(mean), side)
        if weights is not None:
            _load(trunk, weights, backbone)
        network = Network(trunk, channels, classes, mean, std, size)
    return network.to(memory_format=torch.channels_last)


def _small_cnn(image_channels: int) -> nn.Module:
    """16-32-64-64 channels at stride 8: an 8x8 map of a 64x64 image."""
    layers: list[nn.Module] = []
    before = image_channels
    for out, kernel, stride, pooled in ((16, 5, 2, False), (32, 3, 1, True), (64, 3, 1, True), (64, 3, 1, False)):
        layers += [nn.Conv2d(before, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled
        before = out
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
    """C of the trunk's map, found by a forward pass of one blank image; drops the layers that it does not reach."""
    ran: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, *_: ran.add(module)) for module in trunk.modules()]
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
        if ran.isdisjoint(child.modules()):
            setattr(trunk, name, nn.Identity())
    return int(out.shape[1])


def _load(trunk: nn.Module, weights: dict[str, Tensor], backbone: str) -> None:
    wanted = trunk.state_dict()
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    wrong = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        why = f"have no tensor {name!r}" if missing else f"have {name!r} of shape {tuple(weights[name].shape)}"
        raise BenchError(f"--weights {why}, so they are not of {backbone}: name the backbone they were made for")
    trunk.load_state_dict({name: weights.get(name, value) for name, value in wanted.items()})

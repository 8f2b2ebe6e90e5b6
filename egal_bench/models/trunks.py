"""Trunks: what turns normalised images into a feature map [B, C, h, w], by the name that `--backbone` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from egal_bench.errors import BenchError, UserCodeError, brief, unknown
from egal_bench.models.backbones import is_factory
from egal_bench.models.layouts import PatchGrid, UserModel, check_user_map, timm_layout
from egal_bench.plugins import load_attribute

SMALL_CNN = "small-cnn"
MEAN, STD = 0.5, 0.25  # for images in 0..1 where no pretrained weights say otherwise; inputs are then -2 to 2
_REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError)  # how timm's networks refuse a size
# children of token networks behind their features; others, such as rotary embeddings, may be used without being called
_BEHIND_TOKENS = ("head", "head_dist", "attn_pool")
_returned: WeakSet[nn.Module] = WeakSet()  # modules that factories have returned in this process


@dataclass(frozen=True)
class Trunk:
    """A module from images float [B, in_channels, H, W] to a map [B, channels, h, w], in evaluation mode.

    Attributes:
        module: the trunk.
        channels: number of channels of its map.
        mean: per input channel, of images scaled to 0..1.
        std: per input channel, of images scaled to 0..1.
    """

    module: nn.Module
    channels: int
    mean: list[float]
    std: list[float]


def trunk_of(backbone: str, image_channels: int, side: int) -> Trunk:
    """Return the randomly initialised trunk of `backbone`, drawn from PyTorch's global generator.

    Args:
        backbone: `small-cnn`, the name of a timm model or `module:factory`.
        image_channels: channels of the packed images, 1 or 3.
        side: pixels per side of the images that the trunk sees.

    Raises:
        BenchError: an unknown backbone, one that cannot take these images, or one without a map to explain.
        UserCodeError: the user's factory or module raised an exception.
    """
    if is_factory(backbone):
        return _user_trunk(backbone, image_channels, side)
    if backbone == SMALL_CNN:
        return _small_cnn(image_channels, side)
    return _timm_trunk(backbone, side)


def _small_cnn(image_channels: int, side: int) -> Trunk:
    """Return a trunk of 16, 32, 64 and 64 channels at stride 8: a 64×64 image gives an 8×8 map."""
    layers: list[nn.Module] = []
    inputs = image_channels
    for out, kernel, stride, pooled in ((16, 5, 2, False), (32, 3, 1, True), (64, 3, 1, True), (64, 3, 1, False)):
        layers += [nn.Conv2d(inputs, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled
        inputs = out
    module = nn.Sequential(*layers)
    try:
        _blank_pass(module, module, image_channels, side)
    except RuntimeError as error:
        raise _refused(SMALL_CNN, side, error) from None
    return Trunk(module, inputs, [MEAN] * image_channels, [STD] * image_channels)


def _timm_trunk(name: str, side: int) -> Trunk:
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        raise unknown("backbone", name, [SMALL_CNN, *timm.list_models()])
    model, output, reached = _built_for(name, side)
    module = timm_layout(model, output, name)
    if isinstance(module, PatchGrid):
        _check_patches(model, name, side)
    _drop_unreached(model, reached, (*dict(model.named_children()),) if module is model else _BEHIND_TOKENS)
    data = resolve_model_data_config(model)
    return Trunk(module, model.num_features, list(data["mean"]), list(data["std"]))


def _built_for(name: str, side: int) -> tuple[Any, object, set[nn.Module]]:
    """Return the timm network `name`, its features of a blank image, and the modules that a forward pass reaches.

    The network is built as timm does by default. Where it then refuses images of `side` pixels, as vision transformers
    refuse every size but that of their pretraining, it is built for this size.
    """
    import timm

    state = torch.get_rng_state()
    model = timm.create_model(name, pretrained=False, num_classes=0)
    try:
        return model, *_blank_pass(model, model.forward_features, 3, side)
    except _REFUSALS as error:
        refusal = error
    torch.set_rng_state(state)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, img_size=side)
        return model, *_blank_pass(model, model.forward_features, 3, side)
    except _REFUSALS as error:
        cause = refusal if isinstance(error, TypeError) else error  # a TypeError: it takes no img_size
        raise _refused(name, side, cause) from None


def _refused(backbone: str, side: int, cause: Exception) -> BenchError:
    return BenchError(f"--backbone {backbone} cannot take {side}x{side} images: {brief(cause)}")


def _blank_pass(
    model: nn.Module, forward: Callable[[Tensor], object], in_channels: int, side: int
) -> tuple[object, set[nn.Module]]:
    """Return what `forward` gives for one blank image, and the modules of `model` that it reaches."""
    reached: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, *_: reached.add(module)) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            return forward(torch.zeros(1, in_channels, side, side)), reached
    finally:
        for hook in hooks:
            hook.remove()


def _drop_unreached(model: nn.Module, reached: set[nn.Module], names: Iterable[str]) -> None:
    """Replace those children of `names` that the features do not need, such as a classifier, by identities."""
    for name in names:
        child = getattr(model, name, None)
        if isinstance(child, nn.Module) and reached.isdisjoint(child.modules()):
            setattr(model, name, nn.Identity())


def _check_patches(model: Any, name: str, side: int) -> None:
    """Raise BenchError unless patches cover the whole image: timm leaves out a border that is no whole patch."""
    if not hasattr(model, "patch_embed"):
        raise BenchError(
            f"--backbone {name}: timm does not say how large its patches are, so they may not cover the whole image; "
            "choose another vision transformer, such as vit_small_patch16_224"
        )
    patch = getattr(model.patch_embed, "patch_size", 1)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if side % patch:
        raise BenchError(
            f"--backbone {name} cannot take {side}x{side} images: its patches have {patch} pixels per side; "
            f"choose --size {max(round(side / patch), 1) * patch}"
        )


def _user_trunk(backbone: str, image_channels: int, side: int) -> Trunk:
    factory = load_attribute(backbone, f"--backbone {backbone}")
    try:
        model = factory()
    except BenchError:
        raise
    except Exception as error:
        raise UserCodeError.of(f"backbone {backbone!r}", error) from error
    if not isinstance(model, nn.Module):
        raise BenchError(f"--backbone {backbone}: returns a {type(model).__name__}, expected a torch.nn.Module")
    if model in _returned:
        raise BenchError(
            f"--backbone {backbone}: returns the same module twice, so that runs would share its weights; "
            "build a new one in each call"
        )
    _returned.add(model)
    in_channels = _in_channels(model) or image_channels
    if image_channels not in (1, in_channels):
        raise BenchError(
            f"--backbone {backbone}: takes {in_channels}-channel images, but the packed images have {image_channels} "
            f"channels; let it take {image_channels}, or pack the images as grey"
        )
    module = UserModel(model, backbone)
    output, _ = _blank_pass(module, module, in_channels, side)
    channels = check_user_map(output, backbone).shape[1]
    return Trunk(module, channels, [MEAN] * in_channels, [STD] * in_channels)


def _in_channels(model: nn.Module) -> int:
    """Return the channels of the images that a user's module takes, 0 where nothing says it.

    Its attribute `in_channels` says it, else its first convolution.
    """
    declared = getattr(model, "in_channels", None)
    if isinstance(declared, int):
        return declared
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 0)

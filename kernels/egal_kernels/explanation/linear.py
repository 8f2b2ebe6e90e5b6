"""`linear_head`: whether a head is global average pooling and one linear map, decided from its modules."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def linear_head(head: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return (weight [K, C], bias [K] or None) if `head` is global average pooling and one linear map, else None.

    `acquire(features, weight, bias, roi)` explains such a head without a backward pass; `explain` takes any other head.
    Weight and bias are the head's own parameters, so gradients flow to the head.

    These modules are recognised: AdaptiveAvgPool2d(1), Flatten, Identity, dropout in eval mode, one Linear or 1×1
    Conv2d (also before the pooling), Sequential, and timm's SelectAdaptivePool2d and ClassifierHead if they average.
    The result is None if the head contains anything else: an activation, a norm, another pooling, a second linear map,
    a hook, a subclass, weight normalisation. Nothing is guessed from numbers.
    """
    linear: nn.Linear | nn.Conv2d | None = None
    shape = "map"  # [B, C, h, w], then "pooled" [B, C, 1, 1], then "flat" [B, C]
    for step in _steps(head):
        kind = type(step)
        if kind in PASSIVE and not (step.training and getattr(step, "p", 0)):
            continue
        if kind is nn.AdaptiveAvgPool2d and step.output_size in (1, (1, 1)) and shape != "flat":
            shape = "pooled"
        elif _is_timm(step, "FastAdaptiveAvgPool") and step.dim == (2, 3) and shape != "flat":
            shape = "flat" if step.flatten else "pooled"
        elif kind is nn.Flatten and (step.start_dim, step.end_dim) == (1, -1) and shape != "map":
            shape = "flat"
        elif linear is None and (kind is nn.Linear if shape == "flat" else _is_pointwise(step)):
            linear = step
        else:
            return None
    return (linear.weight.flatten(1), linear.bias) if linear is not None and shape == "flat" else None


def _steps(module: nn.Module) -> Iterator[Any]:
    """Yield the modules that `module` runs one after the other, as far as it is known how it runs its parts."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        yield nn.Module()  # a module that is not recognised: this one may compute anything
    elif type(module) is nn.Sequential:
        for child in module:
            yield from _steps(child)
    elif _is_timm(module, "ClassifierHead"):
        for name in ("global_pool", "drop", "fc", "flatten"):
            yield from _steps(getattr(module, name))
    elif _is_timm(module, "SelectAdaptivePool2d"):
        for name in ("pool", "flatten"):
            yield from _steps(getattr(module, name))
    else:
        yield module


def _is_timm(module: nn.Module, name: str) -> bool:
    """Return whether `module` is of timm's class `name` itself, without importing timm."""
    return type(module).__qualname__ == name and type(module).__module__.startswith("timm.layers.")


def _is_pointwise(step: nn.Module) -> bool:
    """Return whether `step` is a 1×1 convolution of all channels that keeps the positions."""
    return type(step) is nn.Conv2d and (step.kernel_size, step.stride, step.padding, step.groups) == (
        (1, 1), (1, 1), (0, 0), 1)  # fmt: skip

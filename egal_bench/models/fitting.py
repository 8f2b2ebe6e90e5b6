"""Pretrained weights into a trunk: tensors found under any prefix, and adapted in the ways that keep their meaning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from egal_bench.errors import BenchError
from egal_bench.models.layouts import Adapted

State = Mapping[str, Tensor]


def load_weights(trunk: nn.Module, weights: State, backbone: str, in_channels: int) -> list[str]:
    """Load `weights` into `trunk` and return one sentence for each thing that was adapted.

    A prefix before all names, as wrappers write it (`module.`, `backbone.`), is removed. A first convolution for 1 or
    3 channels is adapted to the other number, as timm does. Where names or shapes still differ, timm's own conversion
    for the network is tried, which knows original checkpoints and resamples position tables. Tensors that the trunk
    does not have, such as a classifier, are left out.

    Args:
        trunk: the trunk, whose tensors are replaced.
        weights: the state dict of a checkpoint.
        backbone: the name of the trunk.
        in_channels: channels of the images that the trunk takes.

    Raises:
        BenchError: a tensor is absent or of another shape, or several prefixes fit.
    """
    model = trunk.model if isinstance(trunk, Adapted) else trunk
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    prefix = _prefix(weights, own)
    state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    sentences = [f"its tensors are those under {prefix!r}"] if prefix else []
    sentences += _adapt_first_convolution(model, state, own, in_channels)
    if _misfit(state, own) and (converted := _converted_by_timm(state, model)) and not _misfit(converted, own):
        sentences.append(_conversion(state, own))
        state = dict(converted)
    if misfit := _misfit(state, own):
        raise BenchError(f"--weights {misfit}, so they are not of {backbone}: name the backbone they were made for")
    unused = [name for name in state if name not in model.state_dict() and not _is_dropped(name, model)]
    if unused:
        tensors = f"{len(unused)} tensors are" if len(unused) > 1 else "1 tensor is"
        sentences.append(f"{tensors} not used, such as {unused[0]}")
    model.load_state_dict({name: state.get(name, value) for name, value in model.state_dict().items()})
    return sentences


def _prefix(weights: State, own: State) -> str:
    """Return the prefix under which `weights` hold most of the names of `own`; "" where they hold none of them."""
    first = next(iter(own), None)
    if first is None:
        raise BenchError("--weights: the backbone has no tensors to load")
    ends = (name.removesuffix(first) for name in weights if name.endswith(first))
    covered = {
        prefix: sum(prefix + name in weights for name in own)
        for prefix in ("", *ends)
        if not prefix or prefix.endswith(".")
    }
    complete = [prefix for prefix, count in covered.items() if count == len(own)]
    if len(complete) > 1 and "" not in complete:
        raise BenchError(f"--weights hold the network {len(complete)} times, under {complete}: keep one in the file")
    return max(covered, key=covered.__getitem__)


def _misfit(state: State, own: State) -> str:
    """Return what is wrong with the first tensor of `state` that is absent or of another shape; "" where all fit."""
    for name in own:
        if name not in state:
            return f"have no tensor {name!r}"
    for name, value in own.items():
        if state[name].shape != value.shape:
            return f"have {name!r} of shape {tuple(state[name].shape)}"
    return ""


def _adapt_first_convolution(model: nn.Module, state: dict[str, Tensor], own: State, in_channels: int) -> list[str]:
    """Give `state` first convolutions for `in_channels` channels, where it has them for 1 or 3; return what was done.

    From 3 channels to 1 the weights are summed, from 1 to 3 repeated and divided by 3: a grey image, repeated over the
    channels, gives the same output before and after.
    """
    from timm.models import adapt_input_conv

    sentences = []
    for layer, module in model.named_modules():
        name = f"{layer}.weight"
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.in_channels != in_channels:
            continue
        weight = state.get(name)
        if weight is None or weight.ndim != 4 or {weight.shape[1], in_channels} != {1, 3}:
            continue
        if weight[:, :1].shape == own[name][:, :1].shape:
            how = "summed over 3 channels to 1" if in_channels == 1 else "repeated from 1 channel to 3, divided by 3"
            sentences.append(f"{name} is {how}")
            state[name] = adapt_input_conv(in_channels, weight, base_chans=weight.shape[1])
    return sentences


def _converted_by_timm(state: State, model: nn.Module) -> State | None:
    """Return `state` as timm converts checkpoints for `model`; None where timm has no conversion or it fails."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or not type(model).__module__.startswith("timm."):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they concern timm's own code
            converted = convert(dict(state), model)
    except Exception:  # timm expects tensors of this network, and these may be of any other
        return None
    return converted if isinstance(converted, dict) else None


def _conversion(state: State, own: State) -> str:
    """Return the sentence that says what timm's conversion of `state` changed."""
    resampled = [name for name in own if name in state and state[name].shape != own[name].shape]
    if not resampled:
        return "its names are converted by timm"
    before, after = ("x".join(map(str, tensors[resampled[0]].shape)) for tensors in (state, own))
    others = f" and {len(resampled) - 1} more" if len(resampled) > 1 else ""
    return f"{resampled[0]}{others} resampled by timm to this image size, from {before} to {after}"


def _is_dropped(name: str, model: nn.Module) -> bool:
    """Return whether a tensor belongs to a child that the trunk does without, such as the classifier."""
    return isinstance(getattr(model, name.partition(".")[0], None), nn.Identity)

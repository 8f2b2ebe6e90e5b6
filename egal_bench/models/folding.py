"""Which batch norms of a trunk can become part of a convolution, and the arithmetic that does it.

In evaluation mode a batch norm is one slope s and one offset t per channel: s·x + t.

- Behind a convolution with weights W and bias b, it gives a convolution with weights s·W and bias s·b + t.
- Before a ReLU and a convolution without padding, as in a DenseNet, ReLU(s·x + t) is s·max(x, −t/s) + t for s > 0,
  s·min(x, −t/s) + t for s < 0, and max(t, 0) for s = 0. The slope and the constant become part of the convolution, and
  one pass over the map remains of two.

A pass of a blank image without data (PyTorch's meta device) shows what reads which map, so that nothing is folded whose
map or weights anything else reads.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NEGLIGIBLE = 1e12  # an offset that exceeds the slope so far is all that float32 keeps; their ratio could overflow


@dataclass(frozen=True)
class Folds:
    """Names of modules of a trunk, in the order of a pass.

    Attributes:
        behind: pairs of a convolution and the norm behind it.
        before: pairs of a norm with ReLU and the convolution behind it.
    """

    behind: tuple[tuple[str, str], ...] = ()
    before: tuple[tuple[str, str], ...] = ()


class Clamp(nn.Module):
    """What remains of a norm with ReLU before a convolution: lowest ≤ x ≤ highest, per channel.

    Args:
        lowest: [C].
        highest: [C]; infinite for a channel with a slope of 0 or more, which is nearly every channel in practice.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, lowest: Tensor, highest: Tensor) -> None:
        super().__init__()
        self.register_buffer("lowest", lowest[:, None, None])
        self.register_buffer("highest", highest[:, None, None])
        self.bounded_above = not bool(highest.isposinf().all())

    def forward(self, maps: Tensor) -> Tensor:
        """Return `maps` [B, C, h, w] within the bounds, in their own precision."""
        maps = torch.maximum(maps, self.lowest.to(maps.dtype))  # several times as fast as `clamp` in bfloat16
        if self.bounded_above:
            torch.minimum(maps, self.highest.to(maps.dtype), out=maps)
        return maps


def folds_of(trunk: nn.Module, channels: int, side: int) -> Folds:
    """Return the batch norms of `trunk` that can be folded; none where a pass without data is impossible.

    Args:
        trunk: a module from images float [B, channels, side, side] to a map.
        channels: input channels.
        side: pixels per side.
    """
    blank = copy.deepcopy(trunk).to("meta").eval()
    log = _Log(blank)
    try:
        with torch.no_grad(), log:
            log.output = blank(torch.empty(1, channels, side, side, device="meta"))
    except Exception:  # a module of the user's own may do anything; unfolded it is as good, only slower
        return Folds()
    finally:
        log.close()
    return log.folds()


def folded(trunk: nn.Module, folds: Folds) -> nn.Module:
    """Return a copy of `trunk` in evaluation mode whose norms are folded. Slopes and sums are computed in float64."""
    trunk = copy.deepcopy(trunk).eval().requires_grad_(False)
    replaced: dict[nn.Module, nn.Module] = {}
    for norm_name, convolution_name in folds.before:
        norm, convolution = trunk.get_submodule(norm_name), trunk.get_submodule(convolution_name)
        slope, offset = _slope_and_offset(norm)
        slope = torch.where(slope.abs() * NEGLIGIBLE < offset.abs(), 0.0, slope)
        _scale(convolution, slope[:, None, None], _bias_before(convolution, slope, offset))
        replaced[norm] = _clamp(slope, offset)
    for convolution_name, norm_name in folds.behind:
        convolution, norm = trunk.get_submodule(convolution_name), trunk.get_submodule(norm_name)
        slope, offset = _slope_and_offset(norm)
        _scale(convolution, slope[:, None, None, None], _bias_behind(convolution, slope, offset))
        replaced[norm] = _without_norm(norm)
    for parent in list(trunk.modules()):
        for name, child in parent.named_children():
            if child in replaced:
                setattr(parent, name, replaced[child])
    return trunk


def _slope_and_offset(norm: Any) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a batch norm in evaluation mode, float64 [C] each."""
    slope = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        slope = slope * norm.weight.double()
    offset = -norm.running_mean.double() * slope
    return slope, offset if norm.bias is None else offset + norm.bias.double()


def _bias_before(convolution: Any, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the bias that takes over the constant of a norm with ReLU before the convolution, float64 [out]."""
    constant = torch.where(slope == 0, offset.clamp(min=0), offset)
    bias = torch.einsum("oikl,i->o", convolution.weight.double(), constant)
    return bias if convolution.bias is None else bias + convolution.bias.double()


def _bias_behind(convolution: Any, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the bias that takes over slope and offset of a norm behind the convolution, float64 [out]."""
    return offset if convolution.bias is None else convolution.bias.double() * slope + offset


def _clamp(slope: Tensor, offset: Tensor) -> Clamp:
    edge = torch.where(slope == 0, 0.0, -offset / slope)
    lowest = torch.where(slope < 0, -torch.inf, edge)
    highest = torch.where(slope < 0, edge, torch.inf)
    return Clamp(lowest.float(), highest.float())


def _scale(convolution: Any, scale: Tensor, bias: Tensor) -> None:
    """Multiply the weights of a convolution by `scale` and give it this bias."""
    convolution.weight.data.mul_(scale.to(convolution.weight.dtype))
    convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)


def _timm_norm_with_act(norm: nn.Module) -> bool:
    layers = sys.modules.get("timm.layers")  # without a network of timm, timm is not imported
    return layers is not None and type(norm) is layers.BatchNormAct2d


def _without_norm(norm: Any) -> nn.Module:
    """Return what a norm does besides its normalisation."""
    return nn.Sequential(norm.drop, norm.act) if _timm_norm_with_act(norm) else nn.Identity()


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which operation of a pass reads which tensor, and where the norms stand between them.

    Tensors are told apart by identity, and kept, so that no identity is used twice.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trunk, self.output = trunk, None
        self.calls: list[tuple[Any, Sequence[Any], Any]] = []
        self.readers: dict[int, list[int]] = defaultdict(list)  # tensor → numbers of the calls that read it
        self.norms: dict[str, list[tuple[Any, int, Any, int]]] = defaultdict(list)  # input, first call, output, end
        self.starts: dict[str, int] = {}
        self.hooks = [hook for name, norm in self._usable_norms().items() for hook in self._watched(name, norm)]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in {id(tensor) for tensor in _tensors((args, kwargs or {}))}:
            self.readers[tensor].append(len(self.calls))
        self.calls.append((func, args, result))
        return result

    def folds(self) -> Folds:
        """Return what can be folded."""
        behind, before = [], []
        convolutions = self._convolutions()
        for name, passes in self.norms.items():
            if len(passes) != 1:
                continue
            (source, start, result, end), norm = passes[0], self.trunk.get_submodule(name)
            made_by = next((n for n, (_, args, out) in convolutions.items() if out is source), None)
            if made_by and all(start <= call < end for call in self.readers[id(source)]):
                behind.append((made_by, name))
                continue
            readers = [call for call in self.readers[id(result)] if call >= end]
            read_by = next((n for n, (call, args, _) in convolutions.items() if [call] == readers), None)
            if read_by and result is not self.output and self._has_relu(norm) and _plain(convolutions[read_by][1]):
                before.append((name, read_by))
        return Folds(tuple(behind), tuple(before))

    def _convolutions(self) -> dict[str, tuple[int, Sequence[Any], Any]]:
        """Return call, arguments and result of each convolution whose weights nothing else reads, by module name."""
        by_weight = {id(call[1][1]): (number, *call[1:]) for number, call in enumerate(self.calls)
                     if call[0] is torch.ops.aten.convolution.default and not call[1][6]}  # fmt: skip
        return {
            name: by_weight[id(module.weight)]
            for name, module in self.trunk.named_modules()
            if isinstance(module, nn.Conv2d)
            and len(self.readers[id(module.weight)]) == 1
            and id(module.weight) in by_weight
            and by_weight[id(module.weight)][1][2] is module.bias
        }

    def _usable_norms(self) -> Mapping[str, nn.Module]:
        return {
            name: norm
            for name, norm in self.trunk.named_modules()
            if (type(norm) is nn.BatchNorm2d or _timm_norm_with_act(norm)) and norm.running_mean is not None
        }

    def _has_relu(self, norm: Any) -> bool:
        return _timm_norm_with_act(norm) and type(norm.act) is nn.ReLU and type(norm.drop) is nn.Identity

    def _watched(self, name: str, norm: nn.Module) -> Iterator[Any]:
        def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.starts[name] = len(self.calls)

        def end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.norms[name].append((inputs[0], self.starts[name], output, len(self.calls)))

        yield norm.register_forward_pre_hook(begin)
        yield norm.register_forward_hook(end)


def _plain(arguments: Sequence[Any]) -> bool:
    """Return whether a convolution with these arguments has no padding and a single group."""
    _, _, _, _, padding, _, _, _, groups = arguments
    return not any(padding) and groups == 1


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)

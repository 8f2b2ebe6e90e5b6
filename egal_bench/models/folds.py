"""Which batch norms and activations of a trunk can become part of a convolution, and which weights can be converted.

A pass of a blank image without data (PyTorch's meta device) shows what reads which map, so that nothing is folded whose
map or weights anything else reads. A trunk with hooks, or with modules or parameters of two names, stays as it is.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS = (nn.ReLU, nn.ReLU6)
PRODUCTS = {torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default}
VIEWS = {torch.ops.aten.t.default}  # what a linear layer does to its weight before the product
DEVICES = ("cpu", "cuda", "mps")
WEIGHTED = (nn.Conv2d, nn.Linear)  # modules of a class of their own may read their weights in ways that need float32


@dataclass(frozen=True)
class Folds:
    """Names of modules of a trunk, in the order of a pass.

    Attributes:
        behind: pairs of a convolution and the norm behind it.
        before: pairs of a norm with ReLU and the convolution behind it.
        activated: pairs of a convolution and the activation behind it, or the norm behind it that has the activation.
        autocast: convolutions and linear layers whose weights only products in bfloat16 read, so that these weights
            can be converted before the pass.
    """

    behind: tuple[tuple[str, str], ...] = ()
    before: tuple[tuple[str, str], ...] = ()
    activated: tuple[tuple[str, str], ...] = ()
    autocast: tuple[str, ...] = ()

    @property
    def change_sums(self) -> bool:
        """Return whether the copy computes in another order than the trunk."""
        return bool(self.behind or self.before or self.activated)


def folds_of(trunk: nn.Module, channels: int, side: int) -> Folds:
    """Return what convolutions of `trunk` can take over; nothing where a pass without data is impossible.

    Args:
        trunk: a module from images float [B, channels, side, side] to a map.
        channels: input channels.
        side: pixels per side.
    """
    if _has_hooks(trunk) or _has_second_names(trunk):
        return Folds()
    with torch.inference_mode(False), torch.no_grad():
        try:
            blank = copy.deepcopy(trunk).to("meta").eval()
            for convolution in blank.modules():
                if isinstance(convolution, nn.Conv2d) and convolution.bias is None:  # shows whether a bias would count
                    convolution.bias = nn.Parameter(torch.empty(convolution.out_channels, device="meta"))
            log = _Log(blank)
            with _autocast_on_all_devices(), log, _AutocastOf(log):
                log.output = blank(torch.empty(1, channels, side, side, device="meta"))
        except Exception:  # a module of the user's own may do anything; unfolded it is as good, only slower
            return Folds()
    return log.folds()


@contextmanager
def _autocast_on_all_devices() -> Iterator[None]:
    """Switch autocast to bfloat16 for every kind of device, which changes nothing for tensors of the meta device."""
    before = {device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in DEVICES}
    try:
        _set_autocast(dict.fromkeys(DEVICES, (True, torch.bfloat16)))
        yield
    finally:
        _set_autocast(before)


def _set_autocast(states: Mapping[str, tuple[bool, torch.dtype]]) -> None:
    for device, (enabled, dtype) in states.items():
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _autocasts_to_bfloat16() -> bool:
    """Return whether autocast is on for every kind of device, as `_autocast_on_all_devices` left it."""
    return all(torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
               for device in DEVICES)  # fmt: skip


def _has_hooks(trunk: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())


def _has_second_names(trunk: nn.Module) -> bool:
    modules = len(list(trunk.named_modules(remove_duplicate=False))) > len(list(trunk.modules()))
    return modules or len(list(trunk.named_parameters(remove_duplicate=False))) > len(list(trunk.parameters()))


def has_activation(norm: nn.Module) -> bool:
    """Return whether `norm` is timm's batch norm that is followed by an activation of its own."""
    layers = sys.modules.get("timm.layers")  # without a network of timm, timm is not imported
    return layers is not None and type(norm) is layers.BatchNormAct2d


class _Pass(NamedTuple):
    """One pass through a module: its input and output, and the numbers of its first call and of the call after it."""

    source: Any
    start: int
    result: Any
    end: int


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which operation of a pass reads which tensor, and where norms and activations stand between them.

    Tensors are told apart by identity, and kept, so that no identity is used twice.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trunk, self.output = trunk, None
        self.calls: list[tuple[Any, Sequence[Any], Any]] = []
        self.readers: dict[int, list[int]] = defaultdict(list)  # tensor → numbers of the calls that read it
        self.norms: dict[str, list[_Pass]] = defaultdict(list)
        self.activations: dict[str, list[_Pass]] = defaultdict(list)
        self.starts: dict[str, int] = {}
        self.in_bfloat16: list[bool] = []  # of each call: whether autocast was on
        self.autocasts = True
        for passes, modules in ((self.norms, self._usable_norms()), (self.activations, self._usable_activations())):
            for name, module in modules.items():
                self._watch(name, module, passes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in {id(tensor) for tensor in _tensors((args, kwargs or {}))}:
            self.readers[tensor].append(len(self.calls))
        self.calls.append((func, args, result))
        self.in_bfloat16.append(self.autocasts)
        return result

    def folds(self) -> Folds:
        """Return what can be taken over; call this after the pass."""
        behind, before = [], []
        convolutions = self._convolutions()
        for name, passes in self.norms.items():
            if len(passes) != 1:
                continue
            (source, start, result, end), norm = passes[0], self.trunk.get_submodule(name)
            made_by = next((n for n, (_, args, out) in convolutions.items() if out is source), None)
            is_alone = all(start <= call < end for call in self.readers[id(source)]) and source is not self.output
            if made_by and is_alone:
                behind.append((made_by, name))
                continue
            readers = [call for call in self.readers[id(result)] if call >= end]
            read_by = next((n for n, (call, args, _) in convolutions.items() if [call] == readers), None)
            if read_by and result is not self.output and self._has_relu(norm) and _plain(convolutions[read_by][1]):
                before.append((name, read_by))
        maps = {name: (out, call + 1) for name, (call, _, out) in convolutions.items()}
        activated = tuple(self._activated(maps, dict(behind)))
        return Folds(tuple(behind), tuple(before), activated, tuple(self._autocast()))

    def _activated(self, maps: dict[str, tuple[Any, int]], norms: dict[str, str]) -> Iterator[tuple[str, str]]:
        """Yield each convolution whose map nothing reads but an activation, with the name of the latter.

        Args:
            maps: by convolution its map, and the number of the call after it.
            norms: by convolution the norm behind it.
        """
        for name, (result, end) in maps.items():
            if not _replaceable(self.trunk.get_submodule(name)):
                continue
            if name in norms:
                norm: Any = self.trunk.get_submodule(norms[name])
                if has_activation(norm):
                    if type(norm.act) in ACTIVATIONS and type(norm.drop) is nn.Identity:
                        yield name, norms[name]
                    continue
                _, _, result, end = self.norms[norms[name]][0]
            readers = [call for call in self.readers[id(result)] if call >= end]
            for activation, passes in self.activations.items():
                if len(passes) == 1 and passes[0].source is result and self._reads(activation, passes[0], readers):
                    yield name, activation

    def _reads(self, activation: str, passed: _Pass, readers: list[int]) -> bool:
        """Return whether all `readers` of its input read what the activation makes of it, or are the activation."""
        module: Any = self.trunk.get_submodule(activation)
        if not readers or not passed.start <= readers[0] < passed.end:
            return False
        return module.inplace or (readers[-1] < passed.end and passed.source is not self.output)

    def _autocast(self) -> Iterator[str]:
        """Yield the layers whose weight and bias nothing reads but products that autocast converts them for."""
        for name, module in self.trunk.named_modules():
            is_read = type(module) in WEIGHTED and self.readers[id(module.weight)]
            if is_read and all(self._only_in_products(parameter) for parameter in module.parameters()):
                yield name

    def _only_in_products(self, parameter: Any) -> bool:
        for call in self.readers[id(parameter)]:
            func, _, result = self.calls[call]
            is_product = func in PRODUCTS or (func in VIEWS and self._only_in_products(result))
            if not (is_product and self.in_bfloat16[call]):
                return False
        return True

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
            if (type(norm) is nn.BatchNorm2d or has_activation(norm))
            and norm.running_mean is not None
            and not norm.training  # a module may keep it in training mode
        }

    def _usable_activations(self) -> Mapping[str, nn.Module]:
        return {name: module for name, module in self.trunk.named_modules() if type(module) in ACTIVATIONS}

    def _has_relu(self, norm: Any) -> bool:
        return has_activation(norm) and type(norm.act) is nn.ReLU and type(norm.drop) is nn.Identity

    def _watch(self, name: str, module: nn.Module, passes: dict[str, list[_Pass]]) -> None:
        def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.starts[name] = len(self.calls)

        def end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            passes[name].append(_Pass(inputs[0], self.starts[name], output, len(self.calls)))

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


class _AutocastOf(TorchFunctionMode):
    """Tells a log whether autocast is on, which only the functions above its operations can see."""

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self.log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.log.autocasts = _autocasts_to_bfloat16()
        return func(*args, **(kwargs or {}))


def _plain(arguments: Sequence[Any]) -> bool:
    """Return whether a convolution with these arguments has no padding and a single group."""
    _, _, _, _, padding, _, _, _, groups = arguments
    return not any(padding) and groups == 1


def _replaceable(convolution: Any) -> bool:
    """Return whether weights, bias and sizes are all that a pass through this convolution depends on."""
    sizes = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return type(convolution) is nn.Conv2d and sizes


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)

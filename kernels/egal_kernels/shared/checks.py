"""Argument checks that every op shares. Each error is one line: the argument, what it is, and what was expected."""

from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import Tensor

from egal_kernels.errors import ArgumentError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(
    name: str,
    tensor: object,
    layout: str,
    sizes: dict[str, int],
    dtypes: Iterable[torch.dtype],
    device: torch.device | None = None,
) -> Tensor:
    """Return `tensor` once its shape, dtype and device are right. Raise ArgumentError otherwise.

    Args:
        name: the argument's name, for the message.
        tensor: the value to check.
        layout: the names of its dimensions, such as "B C h w". Only "B" may have size 0.
        sizes: the known sizes of named dimensions. Sizes not known yet are added, so that later arguments must agree.
        dtypes: the accepted dtypes.
        device: the device that it must be on; None accepts any.
    """
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name}: expected a tensor [{', '.join(layout.split())}], got {type(tensor).__name__}")
    shape, dims = tensor.shape, layout.split()
    fits, empty = len(shape) == len(dims), False
    for dim, n in zip(dims, shape, strict=False):  # every call passes here: messages are built only on error
        fits, empty = fits and sizes.get(dim, n) == n, empty or (n == 0 and dim != "B")
    if not fits or empty:
        expected = "[" + ", ".join(f"{dim}={sizes[dim]}" if dim in sizes else dim for dim in dims) + "]"
        rule = " with no dimension but B of size 0" if fits else ""
        raise ArgumentError(f"{name}: expected shape {expected}{rule}, got {list(shape)}")
    if tensor.dtype not in dtypes:
        names = ", ".join(_name(dtype) for dtype in dtypes)
        raise ArgumentError(f"{name}: expected dtype {names}, got {_name(tensor.dtype)} {list(shape)}")
    if device is not None and tensor.device != device:
        raise ArgumentError(f"{name}: expected device {device}, that of features, got {tensor.device} {list(shape)}")
    sizes.update(zip(dims, shape, strict=True))
    return tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_classes(classes: Tensor, count: int) -> None:
    """Raise ArgumentError if a class is outside [0, count). On an accelerator this waits for the device."""
    wrong = classes[(classes < 0) | (classes >= count)]
    if wrong.numel():
        raise ArgumentError(f"classes: expected values in [0, {count}), got {int(wrong[0])}")


def check_labels(classes: Tensor, count: int) -> None:
    """Do as `check_classes`, but on CUDA without waiting: as in PyTorch's losses, a later operation fails instead."""
    if classes.is_cuda and not torch.version.hip:  # ROCm leaves such checks out
        torch._assert_async(((classes >= 0) & (classes < count)).all(), f"classes: expected values in [0, {count})")
    else:
        check_classes(classes, count)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ArgumentError, with the nearest choice, if `value` is not one of `choices`."""
    choices = list(choices)
    if value not in choices:
        hint = f"{did_you_mean(value, choices)} choices: {', '.join(map(repr, choices))}".lstrip()
        raise ArgumentError(f"{name}: unknown value {value!r}; {hint}")


def did_you_mean(value: object, choices: Iterable[str], most: int = 1) -> str:
    """Return "did you mean 'x'?" with up to `most` choices that resemble `value`; "" if none does."""
    near = get_close_matches(str(value), list(choices), n=most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""

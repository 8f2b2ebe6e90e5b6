"""Argument checks that every op shares: one line that names the argument, what it is, and what it should be."""

from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import Tensor


def check_tensor(
    name: str,
    tensor: object,
    layout: str,
    sizes: dict[str, int],
    dtypes: Iterable[torch.dtype],
    device: torch.device | None = None,
) -> Tensor:
    """`tensor`, once its shape fits `layout` ("B C h w"), its dtype is one of `dtypes` and it lies on `device`.

    Dimensions named in `sizes` must match; those that are not are recorded there, so that later arguments must agree.
    Only "B" may be 0. Raises ValueError.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor [{', '.join(layout.split())}], got {type(tensor).__name__}")
    got, dims = tensor.shape, layout.split()
    fits, empty = len(got) == len(dims), False
    for dim, n in zip(dims, got, strict=False):  # on the way of every call: a loop, and no text before it is wanted
        fits, empty = fits and sizes.get(dim, n) == n, empty or (n == 0 and dim != "B")
    if not fits or empty:
        expected = "[" + ", ".join(f"{dim}={sizes[dim]}" if dim in sizes else dim for dim in dims) + "]"
        rule = " with no dimension but B of size 0" if fits else ""
        raise ValueError(f"{name}: expected shape {expected}{rule}, got {list(got)}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected dtype {names}, got {str(tensor.dtype).removeprefix('torch.')} {list(got)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, that of features, got {tensor.device} {list(got)}")
    sizes.update(zip(dims, got, strict=True))
    return tensor


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """ValueError, with the nearest of `choices`, unless `value` is one of them."""
    choices = list(choices)
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name}: unknown value {value!r}; {hint}choices: {', '.join(map(repr, choices))}")

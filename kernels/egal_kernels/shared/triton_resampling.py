# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""How Triton kernels resize an axis without an upsampled map: tables on the device, and a device function."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from egal_kernels.shared.resampling import taps


@dataclass(frozen=True)
class Axis:
    """How n source points are resampled to `size` outputs, as tables on the device."""

    source: Tensor  # int32 [size], the source point a of each output
    t: Tensor  # [size], an output is a + t·(b − a)
    segments: (
        Tensor  # int32 [S, 4]: source points i and j, and the outputs [first, stop) between them; j = i if clamped
    )
    moments: Tensor  # [S, 2]: t at the first output of each segment, and Σ t over the segment
    steps: int  # the halvings that a search of the longest segment takes


@lru_cache(maxsize=64)
def axis_of(n: int, size: int, device: torch.device) -> Axis:
    """Return the tables of an axis. They are computed on the host, where t is the reference's, and copied once."""
    source, t = (x.numpy() for x in taps(n, size, torch.float32, torch.device("cpu")))
    first = np.unique(source, return_index=True)[1]
    clamped = min(max(0, -(-(size - n) // (2 * n))), size)  # outputs y with (2·y + 1)·n < size are before point 0
    cuts = np.unique([*first, clamped, size])
    first, stop = cuts[:-1], cuts[1:]
    i = source[first]
    j = np.where(first < clamped, i, np.minimum(i + 1, n - 1))
    moments = np.stack([t[first], np.add.reduceat(t.astype(np.float64), first)], 1)
    steps = int((stop - first).max() - 1).bit_length()

    def table(x: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(x.astype(dtype)).to(device)

    return Axis(table(source, np.int32), table(t, np.float32), table(np.stack([i, j, first, stop], 1), np.int32),
                table(moments, np.float32), steps)  # fmt: skip


@triton.jit
def columns_at(x, columns, column_t, w: tl.constexpr):
    """Return the source column a of columns x, the next source column, and t."""
    a = tl.load(columns + x)
    return a, tl.minimum(a + 1, w - 1), tl.load(column_t + x)

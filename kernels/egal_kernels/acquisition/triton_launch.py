"""What the launches of Triton kernels have in common: how features lie, how a program is cut, tables of an axis."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
from torch import Tensor

from egal_kernels.acquisition.conventions import taps


@dataclass(frozen=True)
class Tuning:
    """How a program is cut: results do not depend on it but for the order of sums. Powers of two."""

    warps: int
    channels: int  # a tile of features
    positions: int
    columns: int  # of the resized map at a time


def tuning(channels: int, positions: int, channels_last: bool, classes: int, width: int) -> Tuning:
    """What is good on most devices for features [channels, positions], `classes` maps a pass and an ROI `width`.

    A thread holds 16 features of a tile, fewer where their sums for each class exceed 64, and 4 columns. Contiguous
    features are cut by channels, channels last by positions, so that at least 128 bytes of memory are read at a time.
    """
    block = min(triton.next_power_of_2(positions), 32 if channels_last else 128)
    threads = 32 * (8 if block == 128 else 4)
    held = min(16, 64 // triton.next_power_of_2(classes)) * threads
    tile = max(1, min(held // block, triton.next_power_of_2(channels), 64))
    return Tuning(threads // 32, tile, block, min(triton.next_power_of_2(width), 4 * threads))


def in_place(features: Tensor) -> tuple[Tensor, bool]:
    """Features whose samples are contiguous or, if True goes with them, channels_last; copied if strided otherwise."""
    sample = features[:1]
    if (
        not features.is_contiguous()
        and features.shape[1] > 1
        and sample.is_contiguous(memory_format=torch.channels_last)
    ):
        return features, True
    return features if sample.is_contiguous() else features.contiguous(), False


def tile_of(features: Tensor, channels_last: bool, tuned: Tuning) -> dict[str, int]:
    """A tile of features as the kernels take it: BC channels of BP groups of PL positions.

    A group is one load of a thread: at most 16 bytes, aligned in every channel.
    """
    positions = features.shape[2] * features.shape[3]
    vector = min(positions & -positions, 16 // features.element_size())
    lanes = min(tuned.positions, 16 if channels_last else 16 * vector)
    return {"BC": tuned.channels, "BP": tuned.positions // lanes, "PL": lanes}


@dataclass(frozen=True)
class Axis:
    """Resampling n source points to `size`, on the device."""

    source: Tensor  # int32 [size], the source point a of each output
    t: Tensor  # [size], an output is a + t·(b − a)
    segments: Tensor  # int32 [S, 4]: source points i and j of outputs [first, stop); i again for j past the border
    moments: Tensor  # [S, 2]: t at the first, Σ t
    steps: int  # halvings that search the longest segment


@lru_cache(maxsize=64)
def axis_of(n: int, size: int, device: torch.device) -> Axis:
    """The tables of an axis, computed on the host, where t is the reference's, and copied once."""
    source, t = (x.numpy() for x in taps(n, size, torch.float32, torch.device("cpu")))
    first = np.unique(source, return_index=True)[1]
    clamped = min(max(0, -(-(size - n) // (2 * n))), size)  # outputs y with (2·y + 1)·n < size lie before point 0
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

"""What the launches of Triton kernels have in common: the layout of the features and the tiles of a program."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Tuning:
    """How a program is cut into tiles. Only the order of sums in the results depends on it. All are powers of two."""

    warps: int
    channels: int  # number of channels of a tile of features
    positions: int  # number of positions of a tile of features
    columns: int  # number of columns of the resized map that are processed at a time


def tuning(channels: int, positions: int, channels_last: bool, classes: int, width: int) -> Tuning:
    """Return a tuning that is good on most devices.

    A thread has 16 features of a tile, or fewer if their sums for all classes would exceed 64, and 4 columns.
    Contiguous features are cut along channels and channels_last ones along positions, so that at least 128 bytes of
    memory are read at a time.

    Args:
        channels: C of the features.
        positions: h·w of the features.
        channels_last: the layout of the features.
        classes: the number of class maps per pass.
        width: W of the ROI.
    """
    block = min(triton.next_power_of_2(positions), 32 if channels_last else 128)
    threads = 32 * (8 if block == 128 else 4)
    features = min(16, 64 // triton.next_power_of_2(classes)) * threads
    tile = max(1, min(features // block, triton.next_power_of_2(channels), 64))
    return Tuning(threads // 32, tile, block, min(triton.next_power_of_2(width), 4 * threads))


def in_place(features: Tensor) -> tuple[Tensor, bool]:
    """Return features whose samples are contiguous or channels_last, and whether they are channels_last.

    Features with another layout are copied.
    """
    sample = features[:1]
    if (
        not features.is_contiguous()
        and features.shape[1] > 1
        and sample.is_contiguous(memory_format=torch.channels_last)
    ):
        return features, True
    return features if sample.is_contiguous() else features.contiguous(), False


def tile_of(features: Tensor, channels_last: bool, tuned: Tuning) -> dict[str, int]:
    """Return the tile of features as the kernels take it: BC channels of BP groups of PL positions.

    A thread reads its part of a group by one load of at most 16 bytes, which is aligned in every channel.
    """
    positions = features.shape[2] * features.shape[3]
    vector = min(positions & -positions, 16 // features.element_size())
    lanes = min(tuned.positions, 16 if channels_last else 16 * vector)
    return {"BC": tuned.channels, "BP": tuned.positions // lanes, "PL": lanes}


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on `device`; the CPU, for the interpreter, needs none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

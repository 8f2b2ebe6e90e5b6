"""What the launches of Triton kernels have in common: the layout of features, the tiles of a program, and the call."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Tuning:
    """How the work is cut into kernels, programs and tiles. Only the order of sums in the results depends on it.

    All numbers are powers of two, or 0 for `epilogue`.
    """

    warps: int
    channels: int  # number of channels of a tile of features
    positions: int  # number of positions of a tile of features
    columns: int  # number of columns of the resized map that are processed at a time
    epilogue: int = 0  # warps per sample of a second kernel, which makes the counts; 0: one kernel does everything
    samples: int = 1  # per program of the one kernel; a head that is pooled first always has 1


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
    if features.is_contiguous():
        return features, False
    sample = features[:1]
    if features.shape[1] > 1 and sample.is_contiguous(memory_format=torch.channels_last):
        return features, True
    return features if sample.is_contiguous() else features.contiguous(), False


def tile_of(positions: int, itemsize: int, channels_last: bool, tuned: Tuning) -> dict[str, int]:
    """Return the tile of features as the kernels take it: BC channels of BP groups of PL positions.

    A thread reads its part of a group by one load of at most 16 bytes, which is aligned in every channel.

    Args:
        positions: h·w of the features.
        itemsize: bytes of a feature.
        channels_last: the layout of the features.
        tuned: the size of the tile.
    """
    vector = min(positions & -positions, 16 // itemsize)
    lanes = min(tuned.positions, 16 if channels_last else 16 * vector)
    return {"BC": tuned.channels, "BP": tuned.positions // lanes, "PL": lanes}


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on `device`; the CPU, for the interpreter, needs none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass
class Launch:
    """A kernel with everything but the tensors of a call: prepared once per shape, then launched for every batch.

    In each call of a kernel, Triton binds all arguments, looks at the type and alignment of each, and hashes them to
    find the compiled kernel. For a small batch that takes longer than the kernel. A launch therefore keeps the compiled
    kernel of its first call with aligned tensors, and passes it the arguments of later calls in their order.

    Attributes:
        kernel: the kernel.
        fixed: its arguments that are the same in every call: tables, sizes and constants.
        options: options of the compiler.
        samples: number of samples that a program takes.
        compiled: the kernel for tensors whose addresses are multiples of 16 bytes, once it was launched.
    """

    kernel: Any
    fixed: Mapping[str, Any]
    options: Mapping[str, Any]
    samples: int = 1
    compiled: Any = field(default=None, init=False)

    def arguments(self, batch: int, tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """Return the arguments and options of a call, by name.

        Args:
            batch: number of samples.
            tensors: the tensors of the call. Their dtypes, and which of them are None, must be the same in every call.
                Tensors that the kernel does not take are ignored.
        """
        values = {**self.fixed, **tensors, "batch": batch}
        return {**{name: values[name] for name in self.kernel.arg_names}, **self.options}

    def __call__(self, batch: int, tensors: Mapping[str, Tensor | None]) -> None:
        """Launch the programs of a batch; see `arguments`."""
        programs = -(-batch // self.samples)
        aligned = all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors.values())
        if aligned and self.compiled is not None:
            values = {**self.fixed, **tensors, "batch": batch}
            self.compiled[programs, 1, 1](*[values[name] for name in self.kernel.arg_names])
            return
        compiled = self.kernel[programs,](**self.arguments(batch, tensors))
        if aligned:
            self.compiled = compiled  # None in the interpreter

"""The transfer of tensors from the threads that read them to the device of the consumer."""

import math
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_SPARE = 8  # buffers of each size that are kept for reuse
_KEPT = 1e8  # bytes of such buffers that are kept from one epoch to the next
_LINE = 64  # bytes of a cache line; the kernel copies to other addresses several times more slowly

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Sent:
    """Tensors whose copies to the device may not be complete."""

    tensors: Tensors
    arrival: torch.cuda.Event | None  # recorded after the copies on CUDA


class Transfer:
    """Copies of tensors to one device. To CUDA, from pinned memory on a stream of their own.

    The context of a transfer spans one epoch; on leaving it, more than 100 MB of unused buffers are freed.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._spare: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if sum(size * len(buffers) for size, buffers in list(self._spare.items())) > _KEPT:
            self._spare.clear()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Return a tensor in host memory, to be filled and sent. Its memory is reused once no tensor refers to it."""
        if self._cuda:
            return torch.empty(
                shape, dtype=getattr(torch, dtype), pin_memory=True
            )  # PyTorch reuses pinned memory by itself
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            memory = self._spare[size].pop()
        except IndexError:
            memory = _aligned(size)
        array = memory.view(dtype).reshape(shape)
        weakref.finalize(array, self._take_back, memory).atexit = False  # PyTorch holds `array` as long as its tensors
        return torch.from_numpy(array)

    def _take_back(self, memory: np.ndarray) -> None:
        if len(self._spare[memory.size]) < _SPARE:
            self._spare[memory.size].append(memory)

    def send(self, tensors: Tensors) -> Sent:
        """Start to copy the tensors to the device; on the CPU, return them as they are.

        Call this in the thread that filled the tensors.
        """
        if self._device.type == "cpu":
            return Sent(tensors, None)
        if self._stream is None:
            return Sent(tuple(tensor.to(self._device) for tensor in tensors), None)
        with torch.cuda.stream(self._stream):
            sent = tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)
        return Sent(sent, self._stream.record_event())

    def receive(self, sent: Sent) -> Tensors:
        """Return the tensors on the device. Work that the calling thread launches from now on waits for them."""
        if sent.arrival is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.arrival)
            for tensor in sent.tensors:
                tensor.record_stream(stream)
        return sent.tensors


def _aligned(size: int) -> np.ndarray:
    """Return uint8 [size] that begins at a cache line."""
    memory = np.empty(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size]

"""Tensors on their way from the threads that read to the device of the consumer."""

import math
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_SPARE = 8  # buffers of one size that wait to be used again
_KEPT = 1e8  # bytes in them, at most, that are kept from one use to the next
_LINE = 64  # bytes; the kernel copies several times more slowly to addresses that are no multiple


Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Sent:
    """Tensors that may still be on their way."""

    tensors: Tensors
    arrival: torch.cuda.Event | None


class Transfer:
    """Of tensors to one device. To CUDA they travel on a stream of their own, from pinned memory.

    Leaving its context, an epoch, gives memory back if there is much of it.
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
        """Memory of the host, to be filled and sent. It is used again once no tensor refers to it."""
        if self._cuda:
            return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True)  # PyTorch, too, uses it again
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
        """Begin the copies; on the CPU there are none. In the thread that has filled the tensors."""
        if self._device.type == "cpu":
            return Sent(tensors, None)
        if self._stream is None:
            return Sent(tuple(tensor.to(self._device) for tensor in tensors), None)
        with torch.cuda.stream(self._stream):
            sent = tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)
        return Sent(sent, self._stream.record_event())

    def receive(self, sent: Sent) -> Tensors:
        """The tensors, for work that the consumer's thread launches from now on."""
        if sent.arrival is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.arrival)
            for tensor in sent.tensors:
                tensor.record_stream(stream)
        return sent.tensors


def _aligned(size: int) -> np.ndarray:
    """u8 [size] that begins at a cache line. Fresh pages cost as much as the copy into them."""
    memory = np.empty(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size]

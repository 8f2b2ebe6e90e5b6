"""A network for training steps on CUDA whose trunk replays recorded kernels instead of launching each of them anew."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.errors import BenchError, brief
from egal_bench.models.devices import out_of_memory
from egal_bench.models.network import Network


@contextmanager
def in_steps(network: Network, cuda_graphs: bool) -> Iterator[Network]:
    """Yield the network for the training steps of a round: `network` itself, or one whose trunk replays its kernels.

    Parameters and buffers are those of `network`, so a step of the one is a step of the other. The recordings keep the
    maps and gradients of their batches on the device until the block ends.

    Args:
        network: in training mode; on CUDA if its kernels are to be recorded.
        cuda_graphs: whether they are.
    """
    if not cuda_graphs:
        yield network
        return
    shell, trunk = copy.copy(network), RecordedTrunk(network.trunk)
    shell._modules = dict(network._modules) | {"trunk": trunk}
    try:
        yield shell
    finally:
        trunk.recordings.clear()
        gc.collect()  # PyTorch's recordings refer to themselves


class RecordedTrunk(nn.Module):
    """A trunk in training mode, whose forward and backward kernels are recorded once per size of batch.

    A replay, by a CUDA graph, runs the kernels of a usual step in the same order; what it saves is the host's part of
    their launches. What the trunk computes on the host happens once, when it is recorded.

    Args:
        trunk: on CUDA, in training mode.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.recordings: dict[torch.Size, Any] = {}  # by the shape of the batch; not submodules of this one

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of images float32 [B, in_channels, H, W], valid until the next call."""
        if images.shape not in self.recordings:
            self.recordings[images.shape] = self._recorded(images)
        return self.recordings[images.shape](images)

    def _recorded(self, images: Tensor) -> Any:
        """Return a module that replays the trunk for batches like `images`.

        Recording needs passes that count for nothing: buffers, such as the statistics of norms, and the states of the
        random generators are put back.
        """
        device = images.device
        buffers = {buffer: buffer.clone() for buffer in self.trunk.buffers()}
        module: Any = nn.Sequential(self.trunk)
        sample = images.clone()  # becomes the input of every replay
        on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()  # recorded on the current one
        try:
            with (
                on_device,
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                # the cache would hold weights in bfloat16 that a replay does not convert anew
                torch.autocast(
                    device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type), False
                ),
            ):
                module = torch.cuda.make_graphed_callables(module, (sample,), allow_unused_input=True)
        except Exception as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            raise _refusal(brief(error)) from error
        if {id(buffer) for buffer in self.trunk.buffers()} != {id(buffer) for buffer in buffers}:
            raise _refusal("it replaces a buffer by a new tensor, instead of changing it")
        for buffer, before in buffers.items():
            buffer.copy_(before)
        return module


def _refusal(reason: str) -> BenchError:
    return BenchError(f"--cuda-graphs: this network's kernels cannot be recorded: {reason}; leave the flag out")

"""A network for training steps on CUDA whose trunk replays recorded kernels instead of launching each of them anew."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.errors import BenchError, UserCodeError, brief
from egal_bench.models.devices import out_of_memory
from egal_bench.models.network import Network


def with_recorded_trunk(network: Network) -> Network:
    """Return `network`, in training mode on CUDA, with a trunk that records its kernels and replays them.

    Parameters and buffers are those of `network`, so a step of the one is a step of the other. Release the returned
    network after the round: the recordings keep the maps and the gradients of their batches on the device.
    """
    shell = copy.copy(network)
    shell._modules = dict(network._modules) | {"trunk": RecordedTrunk(network.trunk)}
    return shell


class RecordedTrunk(nn.Module):
    """A trunk in training mode, whose forward and backward kernels are recorded once per size of batch.

    A replay runs the kernels that a usual step runs, in the same order, on the same numbers; only the host's part of
    the launches is saved, by a CUDA graph.

    Args:
        trunk: on CUDA, in training mode.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self._recordings: dict[torch.Size, Any] = {}  # by the shape of the batch; not submodules of this one

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of images float32 [B, in_channels, H, W], valid until the next call."""
        if images.shape not in self._recordings:
            self._recordings[images.shape] = self._recorded(images)
        return self._recordings[images.shape](images)

    def _recorded(self, images: Tensor) -> Any:
        """Return a module that replays the trunk for batches like `images`.

        Recording needs passes that count for nothing: buffers, such as the statistics of norms, and the states of the
        random generators are put back.
        """
        kind = images.device.type
        buffers = {buffer: buffer.clone() for buffer in self.trunk.buffers()}
        module: Any = nn.Sequential(self.trunk)
        sample = images.clone()  # becomes the input of every replay
        try:
            with (
                torch.random.fork_rng([images.device] if kind == "cuda" else []),
                # the cache would hold weights in bfloat16 that a replay does not convert anew
                torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), False),
            ):
                module = torch.cuda.make_graphed_callables(module, (sample,), allow_unused_input=True)
        except Exception as error:
            if isinstance(error, UserCodeError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
                raise
            raise BenchError(f"--cuda-graphs: this network's kernels cannot be recorded: {brief(error)}; leave the flag"
                             " out") from error  # fmt: skip
        for buffer, before in buffers.items():
            buffer.copy_(before)
        return module

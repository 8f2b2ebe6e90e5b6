"""The copy of a trained network that passes use: norms folded, weights in the pass's precision, maybe compiled."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from egal_bench.errors import BenchError, UserCodeError, brief
from egal_bench.models.activated import activate, can_activate
from egal_bench.models.devices import batch_of, device_kind, out_of_memory
from egal_bench.models.folding import folded
from egal_bench.models.folds import Folds
from egal_bench.models.network import Network

REFERENCE = 224  # pixels per side of the images that the rule of "auto" counts
WORTH = {"cpu": 5_000, "cuda": 1_000_000}  # reference images, per CPU thread or per GPU, from which compiling pays


def inference_network(
    network: Network, device: str, precision: str, compile: str = "off", batch: int | None = None
) -> Network:
    """Return a copy of `network` for passes on `device`; it shares the head.

    Its batch norms are folded as far as possible (see `folding`), on a CPU activations are part of convolutions (see
    `activated`), and the weights of its convolutions and linear layers are in the precision of the pass, so that
    autocast need not convert them for each batch. A copy of a trained network takes milliseconds, but for the
    compilation, which the first batch starts. A network that cannot be copied is returned as it is.

    Args:
        network: on `device`.
        device: where the pass runs.
        precision: precision of the pass.
        compile: "on" or "off".
        batch: images per batch of a compiled trunk; None: as many as a pass takes.

    Raises:
        BenchError: a network that cannot be copied is to be compiled.
    """
    folds = usable_folds(network, precision)
    try:
        trunk = folded(network.trunk, folds)
    except Exception as error:  # a module of a user's own may refuse to be copied
        if compile == "on":
            reason = f"this network cannot be copied: {brief(error)}"
            raise BenchError(f"--compile on: {reason}; give --compile off") from error
        return network.eval()
    if precision == "bfloat16":
        for name in folds.autocast:
            trunk.get_submodule(name).to(torch.bfloat16)
    if compile == "off" and can_activate(device, precision):  # a compiled trunk has its own operations
        activate(trunk, folds.activated)
    trunk = trunk.to(memory_format=torch.channels_last)
    if compile == "on":
        trunk = Compiled(trunk, batch or batch_of(device), freezing=device_kind(device) == "cpu")
    shell = copy.copy(network)
    shell._modules = dict(network._modules) | {"trunk": trunk}
    return shell.eval()


def usable_folds(network: Network, precision: str) -> Folds:
    """Return the folds of the copy of `network` for a pass in `precision`.

    In bfloat16 the constants of norms before convolutions would be rounded where they ought to cancel, so these norms
    stay.
    """
    return replace(network.folds, before=()) if precision == "bfloat16" else network.folds


def chosen_compile(requested: str, device: str, images: int, side: int, threads: int) -> str:
    """Return "on" or "off" for `requested`, which may be "auto".

    "auto" is "on" where a pass is so long that compiling pays: from WORTH images of REFERENCE² pixels per CPU thread,
    and where a C++ compiler is installed. Sizes decide, never a timing.

    Args:
        requested: "auto", "on" or "off".
        device: where the pass runs.
        images: number of images in the pass.
        side: pixels per side that the trunk sees.
        threads: CPU threads of the pass.

    Raises:
        BenchError: "on" without a C++ compiler.
    """
    if requested == "on" and not _compiler():
        raise BenchError("--compile on: no C++ compiler is installed, such as g++; install one, or give --compile off")
    if requested != "auto":
        return requested
    kind = device_kind(device)
    work = images * (side / REFERENCE) ** 2 / (threads if kind == "cpu" else 1)
    return "on" if kind in WORTH and work >= WORTH[kind] and _compiler() else "off"


def _compiler() -> str | None:
    """Return the path of the C++ compiler that PyTorch would call."""
    return shutil.which(os.environ.get("CXX") or "g++")


class Compiled(nn.Module):
    """A trunk behind torch.compile, whose batches all have the same size: shorter ones are padded with zeros.

    One size needs one compilation, and no number depends on where a pass was interrupted. On a CPU the weights become
    constants of the compiled program. Kernels whose choice decides a number are not chosen by timings, if this version
    of PyTorch can do without them. At most one compiled trunk is usable per process. A batch that exceeds the memory of
    the device raises what PyTorch raises, and from then on batches are half as large.

    Args:
        trunk: on its device, in evaluation mode.
        batch: images per batch.
        freezing: whether the weights become constants of the compiled program.
    """

    def __init__(self, trunk: nn.Module, batch: int, freezing: bool = True) -> None:
        from torch._inductor import config  # takes seconds, so only where it is needed

        super().__init__()
        for name in ("torch.utils.cpp_extension", "torch._dynamo"):  # warn of toolkits, and of what is not compiled
            logging.getLogger(name).setLevel(logging.ERROR)
        torch.compiler.reset()  # programs of earlier networks would count against the limit of recompilations
        self.trunk, self.batch = torch.compile(trunk, dynamic=False), batch
        settings: dict[str, Any] = {"freezing": freezing}
        if hasattr(config, "deterministic"):
            settings["deterministic"] = True
        self.compiling = partial(config.patch, **settings)

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of images float32 [B, in_channels, H, W] in channels_last layout."""
        parts = [self._padded(part) for part in torch.split(images, self.batch)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _padded(self, images: Tensor) -> Tensor:
        missing = self.batch - len(images)
        try:
            batch = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
            with self.compiling():  # read when the first batch is traced
                return self.trunk(batch.contiguous(memory_format=torch.channels_last))[: len(images)]
        except Exception as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                self.batch = max(len(images) // 2, 1)
                raise
            if isinstance(error, UserCodeError):
                raise
            raise BenchError(f"--compile on: PyTorch cannot compile this network: {brief(error)}; give --compile off"
                             ) from error  # fmt: skip

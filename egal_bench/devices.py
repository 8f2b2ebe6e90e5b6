"""Where a network runs."""

from __future__ import annotations

import ctypes
import sys

from egal_bench.errors import BenchError

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # of the CPU and of MPS
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def chosen_device(wanted: str) -> str:
    """ "cuda", "mps" or "cpu": the `wanted` one, or for "auto" the first there is. BenchError where there is none."""
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in usable.items() if there)
    if not usable[wanted]:
        raise BenchError(f"--device {wanted}: this machine has none; use auto or cpu")
    return wanted


def wait_for(device: str) -> None:
    """Return once the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that the device's memory does not suffice: CUDA's is of its own type, the others' are not."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def keep_freed_memory() -> None:
    """Tell glibc to keep memory that is freed, for the rest of the process; does nothing without glibc.

    It returns large blocks to the system otherwise, and gets fresh pages for the maps of each layer of each batch:
    on a CPU those page faults take up to a third of a forward pass.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

"""Where a network runs, and what PyTorch says when that device has no more memory."""

from __future__ import annotations

from egal_bench.errors import BenchError

BATCH = 32  # images per batch of a pass
CUDA_BATCH = 256
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # the words of the CPU's error and of MPS's


def chosen_device(requested: str) -> str:
    """Return the device to use: "cuda", "cuda:N", "mps" or "cpu".

    Args:
        requested: one of these, or "auto" for the first that this machine has.

    Raises:
        BenchError: this machine has no such device.
    """
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        return next(name for name, is_usable in usable.items() if is_usable)
    kind, _, index = requested.partition(":")
    if not usable.get(kind, False):
        raise BenchError(f"--device {requested}: this machine has none; use auto or cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise BenchError(f"--device {requested}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    return requested


def device_kind(device: str) -> str:
    """Return "cuda", "mps" or "cpu" for a device such as "cuda:1"."""
    return device.partition(":")[0]


def batch_of(device: str) -> int:
    """Return how many images a pass on `device` takes at a time."""
    return CUDA_BATCH if device_kind(device) == "cuda" else BATCH


def free_memory(device: str) -> int:
    """Return the bytes that are free on the CUDA device `device`."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def wait_for(device: str) -> None:
    """Return once the device has finished all work that was queued on it."""
    import torch

    if device_kind(device) == "cuda":
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error says that the memory of the device is exhausted.

    CUDA's error has a type of its own; those of the CPU and of MPS are recognised by their words.
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)

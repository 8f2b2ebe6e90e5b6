"""Where a network runs."""

from __future__ import annotations

from egal_bench.errors import BenchError


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

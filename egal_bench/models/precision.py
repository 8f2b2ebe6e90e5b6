"""The precision in which a network's trunk runs."""

from __future__ import annotations

import torch

from egal_bench.models.devices import device_kind

MATRIX_UNITS = (8, 0)  # CUDA compute capability from which bfloat16 has matrix units


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the context in which a trunk runs in `precision` on `device`; weights and inputs stay float32."""
    return torch.autocast(device_kind(device), torch.bfloat16, enabled=precision == "bfloat16")


def chosen_precision(requested: str, device: str) -> str:
    """Return "float32" or "bfloat16" for `requested`, which may be "auto".

    "auto" is bfloat16 where the device has matrix units for it: CUDA from compute capability 8.0, and CPUs with AMX.
    The capability decides, never a timing, so that one command always gives the same numbers on one machine.
    """
    if requested != "auto":
        return requested
    return "bfloat16" if _has_matrix_units(device) else "float32"


def _has_matrix_units(device: str) -> bool:
    kind = device_kind(device)
    if kind == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= MATRIX_UNITS
    return kind == "cpu" and torch.cpu._is_amx_tile_supported()

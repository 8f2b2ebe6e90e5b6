"""Which backend of an op runs: each op is a package with a module `reference`, `cpu` and `triton`."""

import warnings
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

BACKENDS = ("reference", "cpu", "triton")


class Library(NamedTuple):
    name: str
    modules: tuple[str, ...]  # one of which is missing where the library is
    lost: str  # without it


LIBRARIES = {
    "cpu": Library("Numba", ("numba", "llvmlite"), "the CPU backend is off and plain PyTorch is used, tens of times "
                   "slower on a CPU"),
    "triton": Library("Triton", ("triton",), "the Triton backend is off and plain PyTorch is used, which writes and "
                      "reads maps at full resolution a dozen times"),
}  # fmt: skip


def choose(op: str, name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend `name` of the package `op`, or for "auto" the fastest that takes features of `dtype` on `device`.

    Raises ValueError if the one named does not take them.
    """
    wide, auto = dtype == torch.float64, name == "auto"
    if auto:
        name = "reference" if wide else {"cpu": "cpu", "cuda": "triton"}.get(device.type, "reference")
    if name == "reference":
        return name
    if name == "cpu" and device.type != "cpu":
        raise ValueError(f"backend: 'cpu' takes features on the CPU, got {device}; choose 'auto'")
    if wide:
        raise ValueError(f"backend: {name!r} computes in float32, got float64 features; choose 'auto' or 'reference'")
    module = load(op, name)
    if module is None and auto:
        return "reference"
    if module is None:
        library = LIBRARIES[name].name
        raise ValueError(f"backend: {name!r} needs {library}, which is not installed: pip install {library.lower()}, "
                         "or choose 'auto'")  # fmt: skip
    if name == "triton" and device.type != "cuda" and not module.INTERPRETED:
        raise ValueError(f"backend: 'triton' takes features on a CUDA or ROCm device, got {device}; move them there or "
                         "choose 'auto'")  # fmt: skip
    return name


@cache
def load(op: str, name: str) -> Any:
    """The module of a backend, compiled on first use; None, with one warning a library, where that is missing."""
    try:
        return import_module(f"egal_kernels.{op}.{name}")
    except ModuleNotFoundError as missing:
        if missing.name not in LIBRARIES[name].modules:
            raise
        _warn(LIBRARIES[name])
        return None


@cache
def _warn(library: Library) -> None:
    warnings.warn(f"egal_kernels: {library.name} is not installed, so {library.lost}; pip install "
                  f"{library.name.lower()}", RuntimeWarning, stacklevel=3)  # fmt: skip

"""The registry of ops, and the choice of the backend that runs an op.

An op is a package of egal_kernels with one module per backend: `reference`, `cpu` and `triton`.
"""

import warnings
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

from egal_kernels.errors import ArgumentError

OPS = ("acquisition", "loss")  # tests/kernels/test_op_contract.py tests every op named here
BACKENDS = ("reference", "cpu", "triton")


class Library(NamedTuple):
    """The library that a backend needs."""

    name: str
    modules: tuple[str, ...]  # if the library is missing, importing the backend fails for one of these
    loss: str  # what its users lose without it


LIBRARIES = {
    "cpu": Library("Numba", ("numba", "llvmlite"), "the CPU backend is off and plain PyTorch is used, tens of times "
                   "slower on a CPU"),
    "triton": Library("Triton", ("triton",), "the Triton backend is off and plain PyTorch is used, which writes and "
                      "reads maps at full resolution a dozen times"),
}  # fmt: skip


def choose(op: str, name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the backend to run.

    Args:
        op: one of OPS.
        name: one of BACKENDS, or "auto" for the fastest that accepts the features and is installed.
        device: the device of the features.
        dtype: the dtype of the features.

    Raises ArgumentError if the named backend does not accept the features, or if its library is missing.
    """
    wide, auto = dtype == torch.float64, name == "auto"
    if auto:
        name = "reference" if wide else {"cpu": "cpu", "cuda": "triton"}.get(device.type, "reference")
    if name == "reference":
        return name
    if name == "cpu" and device.type != "cpu":
        raise ArgumentError(f"backend: 'cpu' takes features on the CPU, got {device}; choose 'auto'")
    if wide:
        raise ArgumentError(f"backend: {name!r} computes in float32, got float64 features; choose 'auto' or "
                            "'reference'")  # fmt: skip
    module = load(op, name)
    if module is None and auto:
        return "reference"
    if module is None:
        library = LIBRARIES[name].name
        raise ArgumentError(f"backend: {name!r} needs {library}, which is not installed: pip install "
                            f"{library.lower()}, or choose 'auto'")  # fmt: skip
    if name == "triton" and device.type != "cuda" and not module.INTERPRETED:
        raise ArgumentError(f"backend: 'triton' takes features on a CUDA or ROCm device, got {device}; move them there "
                            "or choose 'auto'")  # fmt: skip
    return name


@cache
def load(op: str, name: str) -> Any:
    """Return the module of backend `name` of `op`. Return None, after one warning per library, if that is missing."""
    try:
        return import_module(f"egal_kernels.{op}.{name}")
    except ModuleNotFoundError as missing:
        if missing.name not in LIBRARIES[name].modules:
            raise
        _warn(LIBRARIES[name])
        return None


@cache
def _warn(library: Library) -> None:
    warnings.warn(f"egal_kernels: {library.name} is not installed, so {library.loss}; pip install "
                  f"{library.name.lower()}", RuntimeWarning, stacklevel=3)  # fmt: skip

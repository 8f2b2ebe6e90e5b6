"""The record of where numbers come from: versions, hardware, commit and data."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from egal_bench import __version__
from egal_bench.dataset import Dataset
from egal_shards.threads import cores

PACKAGES = ("torch", "triton", "timm", "numpy", "scipy", "numba", "pandas", "pyarrow", "webdataset")


def environment(datasets: Iterable[Dataset], device: str, precision: str) -> dict[str, Any]:
    """Return a description of the machine, the software and the data of a comparison, for environment.json."""
    import torch

    return {
        "egal_bench": __version__,
        "git_commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {"model": _cpu(), "cores": os.cpu_count()},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "device": device,
        "precision": precision,
        "datasets": {dataset.name: {"manifest_sha256": dataset.shards.manifest.sha256} for dataset in datasets},
    }


def hardware(device: str) -> dict[str, Any]:
    """Return what a measured rate depends on: {"device": model, "driver": version, "versions": …, "commit": …}."""
    import torch

    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    driver = Path("/proc/driver/nvidia/version")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{_cpu()}, {cores()} cores",
        "driver": driver.read_text().splitlines()[0] if on_gpu and driver.is_file() else platform.release(),
        "versions": {"egal-bench": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES}
        | {"cuda": torch.version.cuda or torch.version.hip},
        "commit": commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of this package's checkout, with "+" where files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() if tracked.returncode == 0 else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

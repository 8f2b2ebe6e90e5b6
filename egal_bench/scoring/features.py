"""The frozen regime's features: one pass of the trunk over a shard set, stored on disk and memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_bench.scoring.batches import steps_over
from egal_bench.scoring.spool import Spool
from egal_kernels import PackedRoi


@dataclass(frozen=True, eq=False)
class Features:
    """Memory maps with one row per sample, by position in the shard set.

    Attributes:
        maps: float16 [N, C, h, w].
        pooled: float32 [N, C], the means of `maps`.
        roi: int32 [N, W, ceil(H/32)], bit-packed along y, as the shards store it.
    """

    maps: np.ndarray
    pooled: np.ndarray
    roi: np.ndarray


def identity(dataset: Dataset, backbone: str, weights_digest: str, size: int | None, precision: str = "float32") -> str:
    """Return the name of a folder of features: it changes with images, trunk, input size and precision."""
    parts = [dataset.shards.manifest.sha256, backbone, weights_digest, size, precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def open_features(folder: Path) -> Features:
    """Return the Features that `extract` has written to `folder`."""
    return Features(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Features.__annotations__))


def extract(
    dataset: Dataset, network: Network, folder: Path, device: str, advance: Callable[[int], None] = lambda n: None,
    precision: str = "float32",
) -> None:  # fmt: skip
    """Write the Features of all samples into `folder`, continuing where an interrupted call has stopped.

    Args:
        advance: called with n after each n samples.

    Raises:
        BenchError: the disk is full, or the features of a sample are NaN, infinite or beyond float16.
    """
    spool = Spool(len(dataset.keys), folder.with_name(folder.name + ".partial"), "features")
    advance(spool.done)
    network = network.eval().to(device)

    def step(images: Tensor, roi: PackedRoi) -> dict[str, Tensor]:
        with autocast(device, precision):
            maps = network.features(images).half()
        finite = maps.isfinite().flatten(1).all(1)
        return {"finite": finite, "maps": maps, "pooled": maps.mean((2, 3), dtype=torch.float32), "roi": roi.bits}

    for rows in steps_over(dataset, np.arange(spool.done, spool.samples), step, device):
        bad = np.flatnonzero(~rows.pop("finite"))
        if len(bad):
            name = dataset.named(spool.done + int(bad[0]))
            raise BenchError(f"{name}: its features are NaN, infinite or beyond float16")
        spool.append(rows)
        advance(len(rows["maps"]))
    spool.folder.rename(folder)

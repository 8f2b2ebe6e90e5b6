"""The frozen regime's features: one pass of the trunk over a shard set, stored on disk and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egal_bench.config import NUMBERS
from egal_bench.console import console
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError, brief
from egal_bench.models.devices import device_kind
from egal_bench.models.inference import inference_network
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_bench.scoring.batches import steps_over
from egal_bench.scoring.spool import Spool, damage
from egal_bench.tables.locks import locked
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


def identity(
    dataset: Dataset, backbone: str, weights_digest: str, size: int | None, precision: str, device: str, compile: str,
    threads: int,
) -> str:  # fmt: skip
    """Return the name of a folder of features: images, trunk, input size and how the trunk runs decide it."""
    trunk = [backbone, weights_digest, size, precision, device_kind(device), compile, threads]
    parts = [dataset.shards.manifest.sha256, *trunk, NUMBERS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def open_features(folder: Path) -> Features:
    """Return the Features that `extract` has written to `folder`. Raises BenchError where one cannot be opened."""
    try:
        return Features(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Features.__annotations__))
    except (OSError, ValueError, EOFError) as error:
        raise BenchError(f"{folder}: {brief(error)}; the same command computes these features again") from None


def intact(folder: Path, samples: int) -> bool:
    """Return whether `folder` holds features of all samples, each byte as it was written."""
    return folder.is_dir() and damage(folder, samples) is None


def extract(
    dataset: Dataset, network: Network, folder: Path, device: str, advance: Callable[[int], None] = lambda n: None,
    precision: str = "float32", compile: str = "off",
) -> None:  # fmt: skip
    """Write the Features of all samples into `folder`, unless they are there.

    One process writes and the others wait for it. Where it ends early, for whatever reason, the next one continues
    after its last batch. Damaged features, and those without checksums, are computed again from the first damaged
    batch on; a line on the console says so.

    Args:
        dataset: the shard set.
        network: the trunk.
        folder: its parent may be shared by any number of comparisons.
        device: where the network runs.
        advance: called with n after each n samples.
        precision: precision of the trunk.
        compile: "on" or "off"; see `inference_network`.

    Raises:
        BenchError: the disk is full, or the features of a sample are NaN, infinite or beyond float16.
    """
    samples, partial = len(dataset.keys), folder.with_name(folder.name + ".partial")

    def say_waiting() -> None:
        console.print(f"waiting for another process that computes the features in {folder}", markup=False)

    with locked(folder.parent, folder.name, say_waiting):
        if folder.is_dir():
            if (what := damage(folder, samples)) is None:
                advance(samples)
                return
            console.print(f"the features in {folder} are {what}: computing them again", markup=False)
            shutil.rmtree(partial, ignore_errors=True)
            folder.rename(partial)
        trunk = inference_network(network.to(device), device, precision, compile)
        _extract(dataset, trunk, Spool(samples, partial, "features"), device, advance, precision)
        partial.rename(folder)


def _extract(
    dataset: Dataset, network: Network, spool: Spool, device: str, advance: Callable[[int], None], precision: str
) -> None:
    """Write the rows that `spool` lacks."""
    advance(spool.done)

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

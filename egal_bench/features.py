"""The frozen regime's features: one pass of the trunk over a shard set, kept on disk and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.model import Network

BATCH = 32


@dataclass(frozen=True)
class Features:
    """Memory maps, a row a sample, by position in the shard set.

    Attributes:
        maps: float16 [N, C, h, w]. pooled: float32 [N, C], the means of `maps`.
        roi: int32 [N, W, ceil(H/32)], bit-packed along y, as the shards store it.
    """

    maps: np.ndarray
    pooled: np.ndarray
    roi: np.ndarray


def identity(dataset: Dataset, backbone: str, weights_digest: str, size: int | None) -> str:
    """Name of the folder of these features: changes with the images, the trunk and its input size."""
    parts = [dataset.shards.manifest.sha256, backbone, weights_digest, size]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)  # mapped once a process: each page faults once, not once a run
def open_features(folder: Path) -> Features:
    """The Features that `extract` left in `folder`."""
    return Features(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Features.__annotations__))


def extract(
    dataset: Dataset, network: Network, folder: Path, device: str, advance: Callable[[int], None] = lambda n: None
) -> None:
    """Write the Features of all samples into `folder`; go on where an interrupted call stopped.

    `advance(n)` is called after each n samples. Raises BenchError for a full disk, or a sample whose features
    are NaN, infinite or beyond float16.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    counter = partial / "done.txt"
    done = int(counter.read_text()) if counter.is_file() else 0
    advance(done)
    network = network.eval().to(device)
    written: Features | None = None
    for rows, found in _batches(dataset, network, done, device):
        if written is None:
            written = _allocate(partial, len(dataset.keys), found, fresh=done == 0)
        bad = np.flatnonzero(~np.isfinite(found.maps).all(axis=(1, 2, 3)))
        if len(bad):
            raise BenchError(
                f"sample {str(dataset.keys[rows][bad[0]])!r}: its features are NaN, infinite or beyond float16"
            )
        for name, values in vars(found).items():
            getattr(written, name)[rows] = values
        counter.write_text(str(rows.stop))
        advance(rows.stop - rows.start)
    counter.unlink()
    partial.rename(folder)


def _batches(dataset: Dataset, network: Network, done: int, device: str) -> Iterator[tuple[slice, Features]]:
    """(rows, their Features) for each batch from row `done` on."""
    positions = np.arange(done, len(dataset.keys))
    with torch.inference_mode():
        for batch in dataset.shards.batches(positions, BATCH, device):
            maps = network.features(batch.images).half()
            pooled = maps.float().mean((2, 3))
            rows = slice(done, done + len(batch.keys))
            yield rows, Features(maps.cpu().numpy(), pooled.cpu().numpy(), batch.roi.cpu().numpy())
            done = rows.stop


def _allocate(folder: Path, samples: int, like: Features, *, fresh: bool) -> Features:
    """Memory maps for `samples` rows shaped as those of `like`."""
    shapes = {name: (samples, *values.shape[1:]) for name, values in vars(like).items()}
    need = sum(math.prod(shapes[name]) * values.itemsize for name, values in vars(like).items())
    free = shutil.disk_usage(folder).free
    if fresh and need > free:
        raise BenchError(
            f"{folder.parent}: the features need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "choose another --out"
        )
    mode = "w+" if fresh else "r+"
    return Features(
        *(
            np.lib.format.open_memmap(folder / f"{name}.npy", mode, values.dtype, shapes[name])
            for name, values in vars(like).items()
        )
    )

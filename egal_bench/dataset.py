"""A shard set as the comparison sees it: pool and test, in the order of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egal_bench.errors import BenchError
from egal_shards import ShardSet


@dataclass(frozen=True)
class Dataset:
    """Positions in the shard set, sorted by key, so that no order of files decides a tie.

    Attributes:
        shards: the images. keys: str [N], labels: int64 [N], has_roi: bool [N], by position in the shard set.
        pool, test: int64, positions of the two splits, each sorted by key.
    """

    name: str
    shards: ShardSet
    keys: np.ndarray
    labels: np.ndarray
    has_roi: np.ndarray
    pool: np.ndarray
    test: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return len(self.shards.classes)


def open_dataset(path: str | Path) -> Dataset:
    """The Dataset of the shard set at `path`.

    Raises:
        ShardError: the set is damaged.
        BenchError: a group spans pool and test, or a split lacks a class, so that no comparison on it is fair.
    """
    shards = ShardSet(path)
    keys, group, split = (np.array(shards.rows.table[name].to_pylist()) for name in ("key", "group", "split"))
    labels = shards.rows.label
    shared = np.intersect1d(group[split == "pool"], group[split == "test"])
    if len(shared):
        raise BenchError(
            f"{path}: group {str(shared[0])!r} lies in both pool and test ({len(shared)} such); pack it again"
        )
    for part in ("pool", "test"):
        absent = set(range(len(shards.classes))) - set(labels[split == part].tolist())
        if absent:
            raise BenchError(
                f"{path}: class {shards.classes[min(absent)]!r} has no sample in the {part}; pack another split"
            )
    order = np.argsort(keys, kind="stable")
    return Dataset(
        name=Path(path).resolve().name,
        shards=shards,
        keys=keys,
        labels=labels,
        has_roi=shards.rows.roi_area > 0,
        pool=order[split[order] == "pool"],
        test=order[split[order] == "test"],
    )

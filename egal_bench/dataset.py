"""A shard set as a comparison sees it: pool and test set, in the order of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egal_bench.errors import BenchError
from egal_shards import ShardSet
from egal_shards.layout import SampleJson
from egal_shards.urls import set_name, shown

ROI_BATCH = 64


@dataclass(frozen=True)
class Dataset:
    """A shard set and the positions of its pool and test samples. Arrays [N] go by position in the shard set.

    Attributes:
        name: the name of the shard set.
        shards: the images.
        keys: str [N].
        labels: int64 [N].
        groups: str [N], the group (patient) of each sample.
        has_roi: bool [N].
        pool: int64, positions of the pool, sorted by key.
        test: int64, positions of the test set, sorted by key.
    """

    name: str
    shards: ShardSet
    keys: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    has_roi: np.ndarray
    pool: np.ndarray
    test: np.ndarray

    def named(self, position: int) -> str:
        """Return the name of the sample at `position` for messages: its shard, its source file and its key."""
        shards, rows = self.shards, self.shards.rows
        shard, (start, end) = int(rows.shard[position]), rows.span(position)
        with shards.open_shard(shard) as file:
            file.seek(start)
            text = rows.payloads(position, file.read(end - start))[2]
        source = SampleJson.model_validate_json(text).file
        return f"{shards.manifest.shards[shard].file}, packed from {source}: sample {rows.text('key', position)!r}"

    def rois(self, positions: np.ndarray) -> np.ndarray:
        """Return the ROIs of the samples at `positions`, bool [N, H, W]; all False for a sample without ROI."""
        size = self.shards.manifest.image.size
        batches = self.shards.batches(positions, ROI_BATCH, "cpu")
        # bit y % 32 of the word y // 32 of a column, the first bit lowest
        words = np.concatenate([batch.roi.numpy() for batch in batches]).astype("<i4")
        pixels = np.unpackbits(words.view(np.uint8), axis=2, count=size, bitorder="little")
        return pixels.transpose(0, 2, 1).astype(bool)

    @property
    def classes(self) -> int:
        """Return the number of classes, K."""
        return len(self.shards.classes)


def open_dataset(path: str | Path, name: str | None = None) -> Dataset:
    """Return the Dataset of the shard set at `path`, a folder or URL.

    Args:
        path: the shard set.
        name: the name of the data set in tables; None: that of the folder.

    Raises:
        ShardError: the set is damaged.
        BenchError: a group spans pool and test, or a split lacks a class, so that no comparison on it is fair.
    """
    shards = ShardSet(path)
    if not shards.classes:
        raise BenchError(
            f"{shown(path)}: was packed without labels, and a comparison needs the label of every sample; "
            "`egal-bench score` ranks such a set"
        )
    keys, group, split = (np.array(shards.rows.table[name].to_pylist()) for name in ("key", "group", "split"))
    labels = shards.rows.label
    shared = np.intersect1d(group[split == "pool"], group[split == "test"])
    if len(shared):
        raise BenchError(
            f"{shown(path)}: group {str(shared[0])!r} lies in both pool and test ({len(shared)} such); pack it again"
        )
    for part in ("pool", "test"):
        absent = set(range(len(shards.classes))) - set(labels[split == part].tolist())
        if absent:
            raise BenchError(
                f"{shown(path)}: class {shards.classes[min(absent)]!r} has no sample in the {part}; pack another split"
            )
    order = np.argsort(keys, kind="stable")
    return Dataset(
        name=name or set_name(path),
        shards=shards,
        keys=keys,
        labels=labels,
        groups=group,
        has_roi=shards.rows.roi_area > 0,
        pool=order[split[order] == "pool"],
        test=order[split[order] == "test"],
    )

"""The shard sets of a query: opened one at a time, and divided into one task per shard."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egal_bench.config import NUMBERS
from egal_bench.errors import BenchError
from egal_bench.models.devices import device_kind
from egal_bench.models.saving import SavedNetwork
from egal_bench.querying.score_files import Part, read_part
from egal_bench.querying.score_shard import in_pool
from egal_bench.querying.shard_task import ShardTask
from egal_shards import ShardSet
from egal_shards.index import Index
from egal_shards.urls import set_name, shown


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of one shard, without the samples that are labelled.

    Attributes:
        task: the shard.
        part: its samples that have no label.
        labelled: those that have one.
    """

    task: ShardTask
    part: Part
    labelled: Part


@dataclass(frozen=True)
class PoolSet:
    """One shard set of a query.

    Attributes:
        name: its name in messages and tables.
        where: folder or URL.
        manifest: digest of its manifest, in hex.
        with_roi: number of its pool samples that have an ROI.
        tasks: one per shard.
    """

    name: str
    where: str
    manifest: str
    with_roi: int
    tasks: tuple[ShardTask, ...]

    def samples_at(self, positions: np.ndarray) -> ShardSet:
        """Return a ShardSet of the samples at these positions, int64 [n], in this order, with n rows in memory."""
        opened, order = ShardSet.without_index(self.where, self.manifest), np.argsort(positions)
        parts, first = [], 0
        for rows in opened.index_by_shard():
            start, end = np.searchsorted(positions, [first, first + len(rows)], sorter=order)
            if start < end:
                parts.append(rows.take(positions[order[start:end]] - first))
            first += len(rows)
        return opened.with_rows(Index.joined(parts).take(np.argsort(order)))


def pool_sets(
    shards: Sequence[str], out: Path, network_file: Path, network: SavedNetwork, backbone: str | None, device: str,
    precision: str, compile: str, threads: int, backbone_source: str,
) -> list[PoolSet]:  # fmt: skip
    """Return the shard sets, each checked against the network. Of their indices nothing is kept.

    Raises:
        BenchError: two sets have the same name, or the network does not fit the images of one.
        ShardError: the manifest or the index of a set is damaged.
    """
    names = [set_name(where) for where in shards]
    if len(set(names)) < len(names):
        repeated = max(names, key=names.count)
        raise BenchError(f"two shard sets are named {repeated!r}: scores are filed by name; rename a folder")
    sets = []
    settings = {
        "network": network.digest, "device": device_kind(device), "precision": precision, "compile": compile,
        "threads": threads, "backbone_source": backbone_source, "numbers": NUMBERS,
    }  # fmt: skip
    for name, where in zip(names, shards, strict=True):
        opened = ShardSet.without_index(where)
        network.check_fits(opened)
        manifest, first = opened.manifest, np.cumsum([0, *(file.samples for file in opened.manifest.shards)])
        tasks = tuple(
            ShardTask(
                out, name, where, manifest.sha256, number, int(first[number]), file, network_file, backbone, device,
                precision, compile, threads, settings | {"data": file.sha256},
            )
            for number, file in enumerate(manifest.shards)
        )  # fmt: skip
        with_roi = sum(int(np.count_nonzero(in_pool(rows) & (rows.roi_area > 0))) for rows in opened.index_by_shard())
        sets.append(PoolSet(name, where, manifest.sha256, with_roi, tasks))
    return sets


def work_of(sets: Sequence[PoolSet], pending: Collection[ShardTask]) -> Iterator[tuple[ShardTask, Index]]:
    """Yield the pending shards with their rows of the index, one in memory at a time."""
    names = {task.name for task in pending}
    for pool in sets:
        if any(task.name in names for task in pool.tasks):
            opened = ShardSet.without_index(pool.where, pool.manifest)
            for task, rows in zip(pool.tasks, opened.index_by_shard(), strict=True):
                if task.name in names:
                    yield task, rows


def scored_parts(tasks: Sequence[ShardTask], labelled: frozenset[str]) -> Iterator[Scored]:
    """Yield the scores of each shard, one in memory at a time."""
    listed = np.array(sorted(labelled), dtype=str)
    for task in tasks:
        part = read_part(task)
        has_label = np.isin(part.keys, listed) if len(listed) else np.zeros(len(part), bool)
        yield Scored(task, part[~has_label], part[has_label])


def described(sets: Sequence[PoolSet]) -> str:
    """Return the names of the sets for messages, without secrets of URLs."""
    return ", ".join(shown(pool.where) for pool in sets)

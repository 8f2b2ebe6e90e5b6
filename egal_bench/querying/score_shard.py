"""Scoring one shard: the work that any engine can hand out, in any order and as often as it likes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.models.inference import inference_network
from egal_bench.models.process import reproducible
from egal_bench.models.saving import SavedNetwork, load_network
from egal_bench.querying.score_files import State, state_of, told_of_full_disk, write_part
from egal_bench.querying.shard_task import ShardTask
from egal_bench.scoring.batches import steps_over
from egal_bench.scoring.pool_pass import scorer
from egal_bench.scoring.scores import COUNTS, FLOATS, Scores, scores_of
from egal_bench.tables.locks import try_lock
from egal_shards import ShardSet
from egal_shards.index import Index


class NotFiniteError(BenchError):
    """The network gives no numbers for a sample, so its shard cannot be scored; other shards can."""


def score_shard(task: ShardTask, rows: Index) -> bool:
    """Write the scores of the pool samples of one shard, unless they are there.

    Returns False where another process is at work on the shard: a lock, which ends with its process, keeps two of them
    apart. The overlap with the ROI is always measured, so that every strategy can later run on these numbers.

    Args:
        task: the shard.
        rows: its rows of the index.

    Raises:
        ShardError: the shard is damaged or unreadable.
        NotFiniteError: the network's output for a sample, which the message names, is not finite.
        BenchError: the results hold other scores of the shard, or the disk is full.
    """
    with told_of_full_disk(task.path):
        task.path.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(task.out, f"scores of {task.name}")
    if lock is None:
        return False
    try:
        if state_of(task) is not State.COMPLETE:
            for leftover in task.path.parent.glob(f".*.{task.path.name}"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            _score(task, rows)
    finally:
        lock.release()
    return True


def images_of(shards: ShardSet) -> Dataset:
    """Return a Dataset for passes that read images and ROIs alone: the arrays of a comparison are empty."""
    numbers, texts = np.empty(0, np.int64), np.empty(0, str)
    return Dataset(shards.name, shards, texts, numbers, texts, np.empty(0, bool), numbers, numbers)


def in_pool(rows: Index) -> np.ndarray:
    """Return which samples belong to the pool, bool [n]: those of a test set are never bought."""
    return rows.texts["split"].to_numpy(zero_copy_only=False) == "pool"


@lru_cache(maxsize=1)
def loaded(
    path: Path, digest: str, backbone: str | None, device: str, precision: str, compile: str
) -> SavedNetwork:  # fmt: skip
    """Return the network of a file, ready for passes on a device, once per process.

    Raises BenchError where the file has changed.
    """
    saved = load_network(path, backbone)
    if saved.digest != digest:
        raise BenchError(f"{path}: has changed since the command started; run it again")
    return replace(saved, network=inference_network(saved.network.to(device), device, precision, compile))


@lru_cache(maxsize=1)
def _opened(where: str, manifest: str) -> ShardSet:
    return ShardSet.without_index(where, manifest)


def _score(task: ShardTask, rows: Index) -> None:
    shards = _opened(task.shards, task.manifest).with_rows(rows)
    saved = loaded(
        task.network, task.settings["network"], task.backbone, task.device, task.precision, task.compile
    )  # fmt: skip
    positions = np.flatnonzero(in_pool(rows))
    with reproducible(task.threads, tf32=task.precision == "tf32"):
        scores = _scores(shards, positions, saved, task)
    groups = rows.texts["group"].take(positions).to_pylist()
    write_part(task, rows.keys(positions), groups, task.first + positions, scores)


def _scores(shards: ShardSet, positions: np.ndarray, saved: SavedNetwork, task: ShardTask) -> Scores:
    """Return the Scores of the samples at `positions`, whose number one shard bounds."""
    config = saved.config.model_copy(update={"precision": task.precision, "threads": task.threads})
    step, dataset = scorer(saved.network, config, task.device, needs={"roi"}), images_of(shards)
    rows = [part["rows"] for part in steps_over(dataset, positions, step, task.device)]
    none = np.empty((0, len(FLOATS) + len(COUNTS) + len(saved.classes)), np.int32)
    scores = scores_of({"rows": np.concatenate([none, *rows])}, soft=config.overlap == "soft")
    bad = np.flatnonzero(~np.isfinite(scores.entropy))
    if len(bad):
        sample = dataset.named(int(positions[bad[0]]))
        raise NotFiniteError(
            f"{sample}: the network's output is NaN or infinite; pack the set without this image, or name another "
            "--network"
        )
    return scores

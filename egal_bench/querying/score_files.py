"""The file of scores of one shard: a few numbers per pool sample, written whole, with the settings that decide them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.querying.shard_task import ShardTask
from egal_bench.scoring.scores import Scores
from egal_bench.strategies import Overlap

SETTINGS = b"egal_bench.score"  # key of the file's metadata: a JSON object, ShardTask.settings
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "key": pa.string(),
            "group": pa.string(),
            "position": pa.int64(),  # in the shard set
            "entropy": pa.float32(),  # nats
            "dice": pa.float32(),  # of Grad-CAM and ROI; NaN without ROI
            "intersection": pa.int32(),  # pixels, as the two areas
            "cam_area": pa.int32(),
            "roi_area": pa.int32(),
            "logits": pa.list_(pa.float32()),
        }.items()
    ]
)
WORDS = {
    "network": "another network", "data": "other images", "device": "--device", "precision": "another precision",
    "compile": "--compile", "threads": "--threads", "backbone_source": "an edited --backbone",
    "numbers": "another version of egal-bench",
}  # fmt: skip


class State(Enum):
    """What the results hold of a shard."""

    ABSENT = "absent"
    COMPLETE = "complete"
    DAMAGED = "damaged"


@dataclass(frozen=True, eq=False)
class Part:
    """The scores of n pool samples. Arrays go by sample.

    Attributes:
        keys: str [n].
        groups: str [n].
        positions: int64 [n], in their shard set.
        logits: float32 [n, K].
        entropy: float32 [n], nats.
        overlap: overlap of Grad-CAM and ROI.
    """

    keys: np.ndarray
    groups: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    entropy: np.ndarray
    overlap: Overlap

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: np.ndarray | slice) -> Part:
        """Return the samples at `rows`."""
        return Part(
            self.keys[rows], self.groups[rows], self.positions[rows], self.logits[rows], self.entropy[rows],
            self.overlap[np.arange(len(self))[rows]],
        )  # fmt: skip


def state_of(task: ShardTask) -> State:
    """Return what the results hold of the shard; every page of a complete file is read and checked.

    Raises:
        BenchError: the results hold its scores with other settings, or a folder in the place of its file.
    """
    if task.path.is_dir():
        raise BenchError(f"{task.path}: is a folder, and the scores of {task.name} belong there; move it elsewhere")
    if task.path.exists() and not task.path.is_file():  # reading a pipe or a device could block for ever
        return State.DAMAGED
    try:
        metadata = pq.read_schema(task.path).metadata or {}
        stored = json.loads(metadata.get(SETTINGS, b"null"))
    except FileNotFoundError:
        return State.ABSENT
    except (pa.ArrowException, OSError, ValueError):
        return State.DAMAGED
    if not isinstance(stored, dict):
        return State.DAMAGED
    if stored != task.settings:
        raise BenchError(
            f"{task.path}: was scored with {_difference(stored, task.settings)}; score into another --out, or give the "
            "settings of then"
        )
    try:
        _table(task)
    except BenchError:
        return State.DAMAGED
    return State.COMPLETE


def read_part(task: ShardTask) -> Part:
    """Return the scores of a shard. Raises BenchError where the file is damaged."""
    table = _table(task)
    numbers = {
        name: table[name].to_numpy() for name in ("position", "entropy", "dice", "intersection", "cam_area", "roi_area")
    }
    logits = table["logits"].combine_chunks().flatten().to_numpy()
    overlap = Overlap(numbers["intersection"], numbers["cam_area"], numbers["roi_area"], numbers["dice"])
    return Part(
        np.array(table["key"].to_pylist(), dtype=str), np.array(table["group"].to_pylist(), dtype=str),
        numbers["position"], logits.reshape(table.num_rows, -1 if table.num_rows else 0), numbers["entropy"], overlap,
    )  # fmt: skip


def write_part(task: ShardTask, keys: list[str], groups: list[str], positions: np.ndarray, scores: Scores) -> None:
    """Write the scores of a shard whole or not at all. Raises BenchError where the disk is full."""
    overlap = scores.overlap
    assert overlap is not None
    logits = np.ascontiguousarray(scores.logits, np.float32)
    ends = np.arange(0, logits.size + 1, logits.shape[1], dtype=np.int32)
    columns = {
        "key": pa.array(keys, pa.string()), "group": pa.array(groups, pa.string()), "position": positions,
        "entropy": scores.entropy.astype(np.float32), "dice": overlap.dice.astype(np.float32),
        "intersection": overlap.intersection.astype(np.int32), "cam_area": overlap.cam_area.astype(np.int32),
        "roi_area": overlap.roi_area.astype(np.int32),
        "logits": pa.ListArray.from_arrays(pa.array(ends), pa.array(logits.ravel())),
    }  # fmt: skip
    schema = SCHEMA.with_metadata({SETTINGS: json.dumps(dict(task.settings), sort_keys=True)})
    with told_of_full_disk(task.path):
        task.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(task.path) as temporary:
            pq.write_table(
                pa.table(columns, schema=schema), temporary, compression="zstd", use_dictionary=["group"],
                write_page_checksum=True,
            )  # fmt: skip


@contextmanager
def told_of_full_disk(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, such as a full disk, into one line that names `path`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise BenchError(f"{path}: {reason}; free space or fix the folder, then the same command continues") from None


def _table(task: ShardTask) -> pa.Table:
    """Return the rows of the file of scores. Raises BenchError for damage, other columns or another number of rows."""
    try:
        table = pq.ParquetFile(task.path, page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise BenchError(f"{task.path}: unreadable ({error}); the same command computes it again") from None
    if not table.schema.equals(SCHEMA) or table.num_rows > task.file.samples:
        raise BenchError(f"{task.path}: does not hold the scores of {task.name}; the same command computes it again")
    return table


def _difference(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """Return what differs between two settings, as words such as "--threads 2 (now 1)"."""
    phrases = []
    for name, words in WORDS.items():
        before, now = stored.get(name), requested.get(name)
        if before != now:
            phrases.append(f"{words} {before} (now {now})" if words in ("--device", "--threads") else words)
    return ", ".join(phrases) or "other settings"

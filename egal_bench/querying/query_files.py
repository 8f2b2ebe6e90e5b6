"""The files of a query: what to annotate next, as CSV and Parquet, and a summary that says where it comes from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from egal_bench.files import replacing
from egal_bench.querying.choosing import Chosen
from egal_bench.querying.pools import PoolSet
from egal_bench.querying.score_files import told_of_full_disk
from egal_bench.reports.names import spreadsheet
from egal_shards import ShardError
from egal_shards.layout import SampleJson

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "rank": pa.int64(),  # 1 for the best
            "key": pa.string(),
            "shard": pa.string(),  # POOL/shard-000000.tar
            "file": pa.string(),  # of the source that was packed; "" where the shard cannot be read any more
            "score": pa.float64(),  # NaN where the strategy gives none
            "entropy": pa.float64(),  # H, nats
            "misalignment": pa.float64(),  # D = 1 - Dice; NaN without ROI
            "predicted": pa.string(),  # the class
        }.items()
    ]
)


@dataclass(frozen=True, eq=False)
class QueryTable:
    """The rows of a query, best first, by the columns of SCHEMA."""

    columns: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, chosen: Chosen, sets: Sequence[PoolSet], classes: Sequence[str]) -> QueryTable:
        """Return the rows of the chosen samples."""
        part = chosen.part
        return cls({
            "rank": list(range(1, len(part) + 1)),
            "key": part.keys.tolist(),
            "shard": [f"{pool}/{shard}" for pool, shard in zip(chosen.pools, chosen.shards, strict=True)],
            "file": source_files(chosen, sets),
            "score": chosen.scores.tolist(),
            "entropy": part.entropy.astype(np.float64).tolist(),
            "misalignment": part.overlap.misalignment.astype(np.float64).tolist(),
            "predicted": [classes[k] for k in part.logits.argmax(axis=1)],
        })  # fmt: skip

    def write(self, out: Path) -> None:
        """Write query.parquet and query.csv, each whole or not at all."""
        with told_of_full_disk(out / "query.parquet"), replacing(out / "query.parquet") as temporary:
            pq.write_table(pa.table(dict(self.columns), schema=SCHEMA), temporary, write_page_checksum=True)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        writer.writerows([cell(value) for value in row] for row in zip(*self.columns.values(), strict=True))
        write_text(out / "query.csv", text.getvalue())


def cell(value: object) -> str:
    """Return the text of a CSV cell: text that a spreadsheet program could run gets an apostrophe, NaN is empty."""
    if isinstance(value, str):
        return str(spreadsheet(value))
    return "" if value != value else repr(value)


def source_files(chosen: Chosen, sets: Sequence[PoolSet]) -> list[str]:
    """Return the source file from which each chosen sample was packed, "" where its shard cannot be read any more."""
    files = [""] * len(chosen.scores)
    for pool in sets:
        rows = np.flatnonzero(chosen.pools == pool.name)
        if not len(rows):
            continue
        samples = pool.samples_at(chosen.part.positions[rows])
        for i, row in enumerate(rows.tolist()):
            start, end = samples.rows.span(i)
            try:
                with samples.open_shard(int(samples.rows.shard[i])) as stream:
                    stream.seek(start)
                    text = samples.rows.payloads(i, stream.read(end - start))[2]
                files[row] = SampleJson.model_validate_json(text).file
            except (OSError, ShardError, ValueError):
                continue
    return files


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with told_of_full_disk(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")

"""One run's file of one table: its path, the record of the run that it carries, and reading it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from egal_bench.errors import BenchError
from egal_bench.tables.schemas import PARTITION, TEXT_COLUMNS, file_schema

RECORD = b"egal_bench.run"  # key of the file's metadata: a JSON object that says which run wrote the file, and how
DAMAGE = (pa.ArrowException, ValueError, OSError)  # what damaged bytes raise; ValueError: text that is not UTF-8


def part(out: Path, table: str, dataset: str, strategy: str, seed: int) -> Path:
    """Return the path of one run's file of `table`; names are percent-encoded, so that each is one folder."""
    values = zip(PARTITION, (dataset, strategy, str(seed)), strict=True)
    return out / table / "/".join(f"{name}={quote(value, safe='')}" for name, value in values) / "part.parquet"


def run_of(file: Path) -> tuple[str, str, int]:
    """Return (dataset, strategy, seed) of a file at a path that `part` has made."""
    dataset, strategy, seed = (unquote(folder.name.partition("=")[2]) for folder in reversed(file.parents[:3]))
    return dataset, strategy, int(seed)


def as_table(table: str, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> pa.Table:
    """Return one run's rows of `table`, without the PARTITION columns, and the record of the run as its metadata."""
    schema = file_schema(table).with_metadata({RECORD: json.dumps(record, sort_keys=True)})
    return pa.Table.from_pylist(list(rows), schema)


def write_table(rows: pa.Table, path: Path) -> None:
    """Write `rows` to `path` as Parquet."""
    repeating = [name for name in rows.schema.names if name in TEXT_COLUMNS]
    pq.write_table(rows, path, use_dictionary=repeating, write_page_checksum=True)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of the run that wrote `path`; None where there is no such file, {} where it has no record."""
    _check_regular(path)
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(RECORD, b"{}"))
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def read(path: Path, table: str) -> pa.Table:
    """Return the rows of the file at `path`. Raises BenchError for other columns, no rows, or damage."""
    schema = file_schema(table)
    _check_regular(path)
    try:
        rows = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        names = rows.schema.names
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    if not rows.schema.equals(schema):
        differing = sorted(set(names) ^ set(schema.names)) or [
            field.name for field in schema if not field.equals(rows.schema.field(field.name))
        ]
        raise BenchError(
            f"{path}: columns {', '.join(differing)} are not those of {table}: another version of egal-bench wrote "
            "it; compare into another --out"
        )
    if not rows.num_rows:
        raise BenchError(f"{path}: has no rows; `egal-bench compare` with the same command computes it again")
    return rows


def _check_regular(path: Path) -> None:
    """Raise BenchError where `path` is something other than a file: to open a named pipe would block."""
    if path.exists() and not path.is_file():
        raise _unreadable(path, "not a regular file")


def _unreadable(path: Path, error: Exception | str) -> BenchError:
    reason = " ".join(str(error).split())  # pyarrow can write several lines
    return BenchError(f"{path}: unreadable ({reason}); `egal-bench compare` with the same command computes it again")

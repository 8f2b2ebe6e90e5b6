"""The tables of a comparison: their schemas, one atomic file per run and table, and reading them back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from egal_bench.errors import BenchError
from egal_bench.files import replacing

PARTITION = ("dataset", "strategy", "seed")  # stored in the names of the folders, so not in the files


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


i64, f64, text = pa.int64(), pa.float64(), pa.string()
_RUN = {"dataset": text, "strategy": text, "seed": i64}
SCHEMAS = {
    # one row per round: what the model of that round, trained on `labels` labels, reached on the test set
    "rounds": _schema(
        **_RUN, round=i64, labels=i64, masks=i64, accuracy=f64, balanced_accuracy=f64, macro_auc=f64, macro_f1=f64,
        nll=f64, ece=f64, test_dice=f64, test_size=i64, train_s=f64, score_s=f64, eval_s=f64, pool_size=i64,
        config_hash=text,
    ),
    # one row per label: `round` is the first round trained on it; round 0 is the initial set, which has no scores (NaN)
    "selections": _schema(
        **_RUN, round=i64, rank=i64, key=text, label=i64, score=f64, entropy=f64, misalignment=f64,
        intersection=i64, cam_area=i64, roi_area=i64,
    ),
}  # fmt: skip
TIMINGS = ("train_s", "score_s", "eval_s")  # the only columns in which two runs of one configuration differ


def part(out: Path, table: str, dataset: str, strategy: str, seed: int) -> Path:
    """Return the path of one run's file of `table`; names are percent-encoded, so that each is one folder."""
    values = zip(PARTITION, (dataset, strategy, str(seed)), strict=True)
    return out / table / "/".join(f"{name}={quote(value, safe='')}" for name, value in values) / "part.parquet"


def write(path: Path, table: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write one run's rows, without the PARTITION columns, to `path`, completely or not at all."""
    schema = pa.schema([field for field in SCHEMAS[table] if field.name not in PARTITION])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)


def config_hash(path: Path) -> str | None:
    """Return the config_hash of a finished run's `rounds` file, None where there is no such file."""
    if not path.is_file():
        return None
    return str(_read(path, "rounds").column("config_hash")[0].as_py())


def load(path: str | Path) -> dict[str, pd.DataFrame]:
    """Return the DataFrames "rounds" and "selections" of a results folder: columns as SCHEMAS, sorted by run and round.

    Args:
        path: the folder that a comparison wrote, such as runs/NAME.

    Raises:
        BenchError: the folder holds no results, or the columns of a file are not those of the schema.
    """
    path = Path(path)
    return {table: _frame(path, table) for table in SCHEMAS}


def _frame(path: Path, table: str) -> pd.DataFrame:
    files = sorted(path.glob(f"{table}/dataset=*/strategy=*/seed=*/part.parquet"))
    if not files:
        raise BenchError(
            f"{path}: no {table}/dataset=…/strategy=…/seed=…/part.parquet below it, so not a finished comparison"
        )
    parts = []
    for file in files:
        values = dict(
            zip(PARTITION, (unquote(p.name.partition("=")[2]) for p in reversed(file.parents[:3])), strict=True)
        )
        rows = _read(file, table).to_pandas()
        parts.append(rows.assign(**(values | {"seed": int(values["seed"])})))
    order = [*PARTITION, "round"] + ["rank"] * (table == "selections")
    return pd.concat(parts)[SCHEMAS[table].names].sort_values(order, ignore_index=True)


def _read(file: Path, table: str) -> pa.Table:
    schema = pa.schema([field for field in SCHEMAS[table] if field.name not in PARTITION])
    try:
        table_read = pq.ParquetFile(file).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise BenchError(f"{file}: unreadable ({error}); remove it and run the comparison again") from None
    if not table_read.schema.equals(schema):
        odd = sorted(set(table_read.schema.names) ^ set(schema.names)) or [
            f.name for f in schema if not f.equals(table_read.schema.field(f.name))
        ]
        raise BenchError(f"{file}: columns {', '.join(odd)} are not those of {table}; another version wrote it?")
    if not table_read.num_rows:
        raise BenchError(f"{file}: no rows; remove it and run the comparison again")
    return table_read

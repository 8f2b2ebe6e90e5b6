"""The table of measured rates that `profile` and the benchmarks write: its schema, writing and reading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from egal_bench.environment import hardware
from egal_bench.errors import BenchError
from egal_bench.files import whole

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
i64, f64, text = pa.int64(), pa.float64(), pa.string()
# a row a stage, or a contender of a benchmark; what does not apply to one is null
SCHEMA = pa.schema({
    "time": text,  # UTC, when the file was written
    "benchmark": text, "case": text, "stage": text,
    "device": text, "driver": text, "versions": text, "commit": text,  # versions: a JSON object, package to version
    "dataset": text, "backbone": text, "size": i64, "batch": i64, "precision": text, "threads": i64,
    "samples": i64, "seconds": pa.list_(f64),  # of one run; of each timed run, in the order of the rounds
    **{f"rate_q{100 * q:02.0f}": f64 for q in QUANTILES},  # samples a second
    "mb_per_s": f64, "share_of_forward": f64,
    "roof": text, "share_of_roof": f64,  # the measured rate that bounds the stage, and how much of it is reached
    "peak_mb": f64,  # of the process, or allocated on the GPU
})  # fmt: skip
KEY = ["benchmark", "case", "stage", "dataset", "backbone", "size", "batch", "precision"]


def row(benchmark: str, stage: str, samples: int, seconds: np.ndarray, **more: Any) -> dict[str, Any]:
    """A row of the table: `seconds` float [rounds] of runs over `samples` samples, and what else is known of them."""
    rates = np.quantile(samples / np.asarray(seconds), QUANTILES)
    named = {f"rate_q{100 * q:02.0f}": float(rate) for q, rate in zip(QUANTILES, rates, strict=True)}
    found = {"benchmark": benchmark, "stage": stage, "samples": samples, "seconds": [float(s) for s in seconds]}
    return {"case": ""} | found | named | more


def write(path: Path, rows: Sequence[dict[str, Any]], device: str) -> None:
    """Write `rows` and where they were measured to `path`, whole or not at all."""
    here = hardware(device)
    where = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "device": here["device"]}
    where |= {"driver": here["driver"], "versions": json.dumps(here["versions"]), "commit": here["commit"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        pq.write_table(pa.Table.from_pylist([where | one for one in rows], SCHEMA), temporary)


def load(path: Path) -> pd.DataFrame:
    """The table of the file at `path`. Raises BenchError for what `write` did not write."""
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise BenchError(f"{path}: not a readable profile ({error}); name a .parquet that `profile` wrote") from None
    if not table.schema.equals(SCHEMA):
        odd = sorted(set(table.schema.names) ^ set(SCHEMA.names)) or ["of other types"]
        raise BenchError(f"{path}: columns {', '.join(odd)} are not those of a profile; another version wrote it?")
    return table.to_pandas()

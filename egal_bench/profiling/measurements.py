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

from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.tables.environment import hardware

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
i64, f64, text = pa.int64(), pa.float64(), pa.string()
# one row per stage of a profile, or per contender of a benchmark; a column that does not apply to it is null
SCHEMA = pa.schema({
    "time": text,  # UTC, when the file was written
    "benchmark": text, "case": text, "stage": text,
    "device": text, "driver": text, "versions": text, "commit": text,  # versions: a JSON object, package → version
    "dataset": text, "backbone": text, "size": i64, "batch": i64, "precision": text, "threads": i64,
    "samples": i64, "seconds": pa.list_(f64),  # samples in one run; seconds of each timed run, in order
    **{f"rate_q{100 * q:02.0f}": f64 for q in QUANTILES},  # samples per second
    "mb_per_s": f64, "share_of_forward": f64,
    "roof": text, "share_of_roof": f64,  # the measured rate that bounds the stage, and the share of it that is reached
    "peak_mb": f64,  # memory of the process, or allocated on the GPU
})  # fmt: skip
FEW_BATCHES = 10  # with fewer, most of a pass is its beginning and its end, where not all stages have work
KEY = ["benchmark", "case", "stage", "dataset", "backbone", "size", "batch", "precision"]


def row(benchmark: str, stage: str, samples: int, seconds: np.ndarray, **columns: Any) -> dict[str, Any]:
    """Return a row of the table.

    Args:
        benchmark: "profile", "profile: peers" or the name of a benchmark.
        stage: stage of the profile or contender of the benchmark.
        samples: number of samples in each run.
        seconds: float [rounds], the time of each run.
        columns: values of other columns of SCHEMA.
    """
    quantiles = np.quantile(samples / np.asarray(seconds), QUANTILES)
    rates = {f"rate_q{100 * q:02.0f}": float(rate) for q, rate in zip(QUANTILES, quantiles, strict=True)}
    measured = {"benchmark": benchmark, "stage": stage, "samples": samples, "seconds": [float(s) for s in seconds]}
    return {"case": ""} | measured | rates | columns


def write(path: Path, rows: Sequence[dict[str, Any]], device: str) -> None:
    """Write `rows`, and the machine and versions that they were measured with, to `path`, completely or not at all."""
    machine = hardware(device) | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    machine["versions"] = json.dumps(machine["versions"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist([machine | row for row in rows], SCHEMA), temporary)


def load(path: Path) -> pd.DataFrame:
    """Return the table of the file at `path`. Raises BenchError for a file that `write` did not write."""
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise BenchError(f"{path}: not a readable profile ({error}); name a .parquet that `profile` wrote") from None
    if not table.schema.equals(SCHEMA):
        odd = sorted(set(table.schema.names) ^ set(SCHEMA.names)) or ["of other types"]
        raise BenchError(
            f"{path}: columns {', '.join(odd)} are not those of a profile; another version may have written it: "
            "measure again"
        )
    return table.to_pandas()

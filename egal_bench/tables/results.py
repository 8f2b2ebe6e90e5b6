"""Reading the tables of a results folder as DataFrames."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from egal_bench.errors import BenchError
from egal_bench.tables.files import read
from egal_bench.tables.folder import ResultsFolder, RunName
from egal_bench.tables.schemas import OPTIONAL, ORDER, PARTITION, SCHEMAS
from egal_bench.tables.settings import comparable


def load(path: str | Path, settings: str | None = None) -> dict[str, pd.DataFrame]:
    """Return the tables of a results folder as DataFrames: columns as SCHEMAS, sorted by run and round.

    "predictions", "explanations" and "pool" are present where the comparison has kept them.

    Args:
        path: the folder that a comparison wrote, such as runs/NAME.
        settings: which runs, where the folder holds runs of different settings: a digest that the warning names, or
            "all"; None: the settings of the last comparison, with a warning that names the others.

    Raises:
        BenchError: the folder holds no such results, or the columns of a file are not those of the schema.
    """
    folder = ResultsFolder(Path(path))
    records = folder.records()
    groups = {run: comparable(record["settings"]) for run, record in records.items()}
    if not groups:
        raise BenchError(f"{path}: holds no finished run of a comparison")
    counts = Counter(groups.values())
    if settings is None:
        settings = _last(folder, counts)
        others = [f"{group} ({n} runs)" for group, n in counts.items() if group != settings]
        if others:
            warnings.warn(
                f"{path}: returning the {counts[settings]} runs of settings {settings}; the folder also holds "
                f"{', '.join(others)}: load(path, settings='…') or settings='all' returns them", stacklevel=2,
            )  # fmt: skip
    if settings != "all" and settings not in counts:
        raise BenchError(f"{path}: holds no runs of settings {settings!r}; it has {', '.join(counts)}")
    runs = [run for run, group in groups.items() if settings in ("all", group)]
    return frames(folder, runs if settings == "all" else same_data(runs, records, _described(folder).get("data", {})))


def frames(folder: ResultsFolder, runs: Collection[RunName]) -> dict[str, pd.DataFrame]:
    """Return the tables of these complete runs; an optional table only where one of the runs has kept it."""
    kept = {run: folder.kept(run) for run in runs}
    tables = {}
    for table, schema in SCHEMAS.items():
        parts = [
            read(folder.part(table, run), table).to_pandas().assign(**run._asdict())
            for run in runs
            if table in kept[run]
        ]
        if parts:
            rows = pd.concat(parts)[schema.names]
            tables[table] = rows.sort_values([*PARTITION, *ORDER[table]], ignore_index=True)
        elif table not in OPTIONAL:
            tables[table] = schema.empty_table().to_pandas()
    return tables


def same_data(
    runs: Collection[RunName], records: Mapping[RunName, Mapping[str, Any]], data: Mapping[str, str]
) -> list[RunName]:
    """Return the runs whose data set has one content: that of `data` where it names the set, else that of most runs.

    Args:
        runs: some runs of a folder.
        records: the records of these runs.
        data: digest of the manifest by name of the data set.
    """
    contents: dict[str, Counter[str]] = {}
    for run in runs:
        contents.setdefault(run.dataset, Counter())[records[run]["settings"]["data"]] += 1
    chosen = {
        name: data[name] if data.get(name) in counts else counts.most_common(1)[0][0]
        for name, counts in contents.items()
    }
    return [run for run in runs if records[run]["settings"]["data"] == chosen[run.dataset]]


def _last(folder: ResultsFolder, counts: Counter[str]) -> str:
    """Return the settings of the last comparison in the folder, else those of most runs."""
    described = _described(folder).get("comparable")
    return str(described) if described in counts else counts.most_common(1)[0][0]


def _described(folder: ResultsFolder) -> dict[str, Any]:
    """Return what config.yaml says of the last comparison; {} where there is none."""
    try:
        described = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return described if isinstance(described, dict) else {}

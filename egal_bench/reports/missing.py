"""What is missing or damaged in results folders, in sentences for the report, which goes on without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from egal_bench.errors import BenchError
from egal_bench.reports.names import listed
from egal_bench.tables.files import read, run_of
from egal_bench.tables.folder import EARLIER, ResultsFolder, RunName
from egal_bench.tables.schemas import OPTIONAL, SCHEMAS

COMPARE = "`egal-bench compare` with the same command"
REPLACE = f"{COMPARE} and --replace"


def incomplete_runs(folder: ResultsFolder, complete: Collection[RunName]) -> list[str]:
    """Return a sentence per run of the folder that is not among its `complete` runs, which says what the run lacks."""
    pattern = "dataset=*/strategy=*/seed=*/part.parquet"
    runs = {RunName(*run_of(file)) for name in SCHEMAS for file in folder.path.glob(f"{name}/{pattern}")}
    return [
        f"{run} is left out: {_obstacle(folder, run)}; {COMPARE} computes the run again."
        for run in sorted(runs - set(complete))
    ]


def _obstacle(folder: ResultsFolder, run: RunName) -> str:
    required = [name for name in SCHEMAS if name not in OPTIONAL]
    absent = [name for name in required if not folder.part(name, run).exists()]
    if absent:
        return f"its table {absent[0]} is missing"
    if folder.record(run) == EARLIER:
        return "an earlier version of egal-bench wrote it (add --replace)"
    return f"its tables {' and '.join(required)} were not written together"


def usable_tables(folder: ResultsFolder, run: RunName) -> tuple[frozenset[str], dict[str, str]]:
    """Return the tables of a complete run without damaged optional ones, and {damaged table: a sentence on it}.

    Every page of the optional tables is read; a damaged required table raises BenchError where its rows are read.
    """
    kept, damaged = set(folder.kept(run)), {}
    for name in OPTIONAL:
        path = folder.part(name, run)
        problem = f"{path} is damaged or belongs to another run; {REPLACE} computes the run again"
        if name in kept:
            try:
                read(path, name)
                continue
            except BenchError as error:
                problem = str(error)
                kept.remove(name)
        elif not path.exists():
            continue
        damaged[name] = f"{run} is shown without its table {name}, which cannot be read: {problem}."
    return frozenset(kept), damaged


def unequal_tables(
    present: Mapping[RunName, Collection[str]], records: Mapping[RunName, Mapping[str, Any]]
) -> list[str]:
    """Return a sentence per data set and optional table that some runs have and others lack.

    Args:
        present: the tables of each run whose files exist.
        records: the record of each run; one that has bought nothing has no table `pool`.
    """
    sentences = []
    for dataset in sorted({run.dataset for run in present}):
        runs = [run for run in sorted(present) if run.dataset == dataset]
        for name in OPTIONAL:
            expected = [run for run in runs if name != "pool" or records[run]["last_round"] > 0]
            lacking = [f"{run.strategy} seed {run.seed}" for run in expected if name not in present[run]]
            if 0 < len(lacking) < len(expected):
                sentences.append(
                    f"{dataset}: {len(lacking)} of {len(expected)} runs {'lack' if len(lacking) != 1 else 'lacks'} the "
                    f"table {name} ({listed(lacking)}), so what is computed from it rests on the others; "
                    f"{REPLACE} computes such runs again."
                )
    return sentences

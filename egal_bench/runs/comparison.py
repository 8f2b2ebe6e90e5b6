"""A comparison: every strategy with every seed on every data set, each run once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import yaml

from egal_bench.config import Config
from egal_bench.console import console
from egal_bench.dataset import Dataset, open_dataset, phantom_set
from egal_bench.errors import BenchError, Interrupted
from egal_bench.models.process import prepare_process
from egal_bench.reports.figures import draw_learning_curves
from egal_bench.runs.engine import Engine
from egal_bench.runs.grid import check_feasible, resolved, tasks_of
from egal_bench.runs.local_engine import LocalEngine, load_ahead
from egal_bench.runs.progress import progress_of
from egal_bench.runs.task import RunTables, Task
from egal_bench.statistics.summary import summarise
from egal_bench.strategies import find
from egal_bench.tables.environment import environment
from egal_bench.tables.results import config_hash, load, part, write
from egal_shards.threads import cores
from egal_shards.urls import set_name, shown


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        out: folder of the results.
        rounds: the `rounds` table of the grid's runs.
        summary: see `statistics.summary.summarise`.
        seconds: wall time.
    """

    out: Path
    rounds: pd.DataFrame
    summary: pd.DataFrame
    seconds: float


def compare(config: Config) -> Comparison:
    """Execute the runs of `config` that are not finished yet; write tables, settings and a figure to its `out`.

    Raises:
        BenchError: before any run starts, for every mistake that can be known by then; or a mistake in a run.
        ShardError: a shard set is damaged.
    """
    start = perf_counter()
    for name in config.strategies:
        find(name, config)
    out = results_folder(config)
    datasets = [open_dataset(path) for path in config.shards or [phantom_set(config, out)]]
    check_feasible(config, datasets)
    prepare_process()
    if workers_of(config, "cpu") > 1:
        load_ahead(config.regime)
    config = resolved(config)
    tasks = tasks_of(config, datasets, out)
    _describe(out, config, datasets)
    execute(tasks, LocalEngine(workers_of(config, config.device)), out)
    rounds = _of_grid(load(out)["rounds"], tasks)
    draw_learning_curves(rounds, out / "learning_curves.png")
    return Comparison(out, rounds, summarise(rounds), perf_counter() - start)


def execute(tasks: Sequence[Task], engine: Engine, out: Path) -> None:
    """Execute the tasks whose tables are not in `out` yet, and write their tables there.

    Raises:
        Interrupted: Ctrl-C; finished runs are kept.
    """
    pending = [task for task in tasks if not finished(task, out)]
    if len(pending) < len(tasks):
        console.print(f"{len(tasks) - len(pending)} of {len(tasks)} runs are already in {out}: skipped")
    replaced = sum(_part(out, "rounds", task).is_file() for task in pending)
    if replaced:
        console.print(
            f"{replaced} runs in {out} were made with other settings, data or version: recomputed; "
            "the old results are replaced"
        )
    try:
        with progress_of(pending) as progress:
            for task, tables in engine.execute(pending, progress.round_done):
                _write(task, tables, out)
                progress.run_done(task)
    except KeyboardInterrupt:
        done = sum(finished(task, out) for task in tasks)
        raise Interrupted(
            f"interrupted: {done} of {len(tasks)} runs are complete in {out}; the same command resumes"
        ) from None
    shutil.rmtree(out / "unfinished", ignore_errors=True)


def finished(task: Task, out: Path) -> bool:
    """Return whether the tables of `task` are in `out`, written under the same settings."""
    return _part(out, "selections", task).is_file() and config_hash(_part(out, "rounds", task)) == task.config_hash


def workers_of(config: Config, device: str) -> int:
    """Return the number of runs at a time: `--workers`, else as many as the cores hold, or one on a GPU."""
    if config.workers is not None:
        return config.workers
    return max(1, cores() // config.threads) if device == "cpu" else 1


def results_folder(config: Config) -> Path:
    """Return the folder of the results, which is made if absent. Raises BenchError for one with other content."""
    names = "+".join(map(set_name, config.shards)) or f"phantom-{config.phantom}"
    out = config.out or Path("runs") / names
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / "config.yaml").is_file() and not (out / "shards").is_dir():
            raise BenchError(f"--out {out} holds something other than a comparison: choose an empty or new folder")
        if not os.access(out, os.W_OK):
            raise BenchError(f"--out {out} is not writable: choose another folder")
    except OSError as error:
        raise BenchError(f"--out {out}: {error.strerror}; choose another folder") from None
    return out


def _part(out: Path, table: str, task: Task) -> Path:
    return part(out, table, task.dataset, task.strategy, task.seed)


def _write(task: Task, tables: RunTables, out: Path) -> None:
    """Write the tables of a finished run; `rounds` comes last, since it marks the run as finished."""
    for table in sorted(tables, key=lambda name: name == "rounds"):
        write(_part(out, table, task), table, tables[table])
    shutil.rmtree(task.scratch, ignore_errors=True)


def _describe(out: Path, config: Config, datasets: Sequence[Dataset]) -> None:
    """Write config.yaml, with every field as resolved, and environment.json."""
    fields: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    fields["shards"] = [shown(path) for path in config.shards]  # without passwords and signatures
    (out / "config.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    record = environment(datasets, config.device, config.precision)
    (out / "environment.json").write_text(json.dumps(record, indent=2) + "\n")


def _of_grid(rounds: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    """Return the rows of this grid's runs, in its order of data sets and strategies: the folder may hold others."""
    order = {run: i for i, run in enumerate(dict.fromkeys((task.dataset, task.strategy) for task in tasks))}
    runs = {(task.dataset, task.strategy, task.seed) for task in tasks}
    in_grid = [run in runs for run in zip(rounds.dataset, rounds.strategy, rounds.seed, strict=True)]
    place = [order.get(run, -1) for run in zip(rounds.dataset, rounds.strategy, strict=True)]
    return (
        rounds.assign(place=place)[in_grid]
        .sort_values(["place", "seed", "round"], ignore_index=True)
        .drop(columns="place")
    )

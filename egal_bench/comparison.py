"""A comparison: every strategy with every seed on every dataset, each run once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from egal_bench.config import Config
from egal_bench.dataset import Dataset, open_dataset, phantom_set
from egal_bench.devices import chosen_device
from egal_bench.environment import environment
from egal_bench.errors import BenchError, Interrupted, unknown
from egal_bench.processes import load_ahead, run_all
from egal_bench.progress import console, counted, rounds_of
from egal_bench.report import draw_learning_curves
from egal_bench.results import load
from egal_bench.run import Task
from egal_bench.statistics import summarise
from egal_bench.strategies import find
from egal_kernels.conventions import CONVENTIONS
from egal_shards.threads import cores
from egal_shards.urls import set_name, shown

if TYPE_CHECKING:
    from egal_bench.model import Network

FROZEN_SEED = 0  # a frozen trunk without weights is the same for every seed, so that its features are computed once


@dataclass(frozen=True)
class Comparison:
    """`out`: the results' folder. `rounds`: the table. `summary`: as `statistics.summarise`. `seconds`: wall time."""

    out: Path
    rounds: pd.DataFrame
    summary: pd.DataFrame
    seconds: float


def compare(config: Config) -> Comparison:
    """Carry out what of `config` has not been carried out yet; tables, settings and a figure are in its `out`.

    Raises:
        BenchError, ShardError: before any run starts, for whatever can be known by then to be wrong.
    """
    start = perf_counter()
    for name in config.strategies:
        find(name)
    if config.explain_convention not in CONVENTIONS:
        raise unknown("convention", config.explain_convention, CONVENTIONS)
    out = _folder(config)
    datasets = [open_dataset(path) for path in config.shards or [phantom_set(config, out)]]
    _check(datasets, config)
    if _workers(config, "cpu") > 1:
        load_ahead(config.regime)
    device = chosen_device(config.device)
    config = config.model_copy(update={"precision": _precision(config, datasets[0], out, device)})
    tasks = _tasks(config, datasets, out, device)
    _describe(out, config, datasets, device)
    waiting = [task for task in tasks if not task.finished()]
    if len(waiting) < len(tasks):
        console.print(f"{len(tasks) - len(waiting)} of {len(tasks)} runs are already in {out}: skipped")
    redone = sum(task.part("rounds").is_file() for task in waiting)
    if redone:
        console.print(f"{redone} runs in {out} were made with other settings, data or version: carried out again")
    try:
        with rounds_of(waiting, config.rounds) as report:
            run_all(waiting, _workers(config, device), report)
    except KeyboardInterrupt:
        done = sum(task.finished() for task in tasks)
        raise Interrupted(
            f"interrupted: {done} of {len(tasks)} runs are whole in {out}; the same command resumes"
        ) from None
    shutil.rmtree(out / "unfinished", ignore_errors=True)
    rounds = _of_grid(load(out)["rounds"], tasks)
    draw_learning_curves(rounds, out / "learning_curves.png")
    return Comparison(out, rounds, summarise(rounds), perf_counter() - start)


def _folder(config: Config) -> Path:
    """The results' folder, made; refuses one that holds something else."""
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


def _check(datasets: Sequence[Dataset], config: Config) -> None:
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise BenchError(
            f"two shard sets are named {max(names, key=names.count)!r}: results are filed by name; rename a folder"
        )
    for dataset in datasets:
        need = config.init + config.rounds * config.budget
        if need > len(dataset.pool):
            raise BenchError(
                f"--init {config.init} + --rounds {config.rounds} x --budget {config.budget} = {need} labels, "
                f"but the pool of {dataset.name} has {len(dataset.pool)} samples: lower one of them"
            )
        if config.explain_loss and not dataset.has_roi[dataset.pool].any():
            raise BenchError(f"--explain-loss: no sample in the pool of {dataset.name} has an ROI: leave it out")


def _tasks(config: Config, datasets: Sequence[Dataset], out: Path, device: str) -> list[Task]:
    """The grid, seed by seed; builds each network once, to find what is wrong with it before any run starts."""
    from egal_bench import (  # torch takes seconds to load: what can be refused without it is refused first
        model,
        weights,
    )

    state, digest = weights.load(config.weights, config.backbone)
    tasks = []
    for dataset in datasets:
        network = model.of_config(config, dataset, FROZEN_SEED, state)
        folder = None
        if config.regime == "frozen":
            folder = _features(config, dataset, network, digest, out, device)
        of_run = config.identity(manifest=dataset.shards.manifest.sha256, weights=digest, device=device)
        first = Task(
            dataset.shards.where, dataset.name, "", 0, config, of_run, out, device, folder,
        )  # fmt: skip
        tasks += [
            replace(first, strategy=strategy, seed=seed)
            for seed in range(config.seeds)
            for strategy in config.strategies
        ]
    return tasks


def _features(config: Config, dataset: Dataset, network: Network, digest: str, out: Path, device: str) -> Path:
    """Folder of the frozen trunk's features, beside the runs so that other comparisons share it."""
    from egal_bench import features

    if config.weights is None:
        console.print("frozen trunk without --weights: its features are random projections, so expect little of them")
    name = features.identity(dataset, config.backbone, digest, config.size, config.precision)
    folder = out.resolve().parent / "features" / f"{dataset.name}-{config.backbone}-{name}"
    if not folder.is_dir():
        try:
            with counted(f"{dataset.name}: features of {config.backbone}", len(dataset.keys)) as advance:
                features.extract(dataset, network, folder, device, advance, config.precision)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: the features so far are in {folder}.partial; the same command resumes"
            ) from None
    return folder


def _describe(out: Path, config: Config, datasets: Sequence[Dataset], device: str) -> None:
    """config.yaml (every field, as resolved) and environment.json."""
    fields: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    fields["shards"] = [shown(path) for path in config.shards]  # no passwords and signatures
    (out / "config.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    (out / "environment.json").write_text(json.dumps(environment(datasets, device, config.precision), indent=2) + "\n")


def _precision(config: Config, dataset: Dataset, out: Path, device: str) -> str:
    """The trunk's: as configured, else that of the comparison in `out` on this kind of device, else the faster one."""
    try:
        found = json.loads((out / "environment.json").read_text())
    except (OSError, ValueError):  # none yet
        found = {}
    if (
        config.precision == "auto"
        and found.get("device") == device
        and found.get("precision") in ("float32", "bfloat16")
    ):
        return found["precision"]
    from egal_bench import precision

    return precision.chosen(config, dataset, device)


def _workers(config: Config, device: str) -> int:
    """Runs at a time: as configured, else as many as fill the cores with the threads of each, one on a GPU."""
    if config.workers is not None:
        return config.workers
    if device != "cpu":
        return 1
    return max(1, cores() // config.threads)


def _of_grid(rounds: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    """The rows of this grid's runs, in its order of datasets and strategies: the folder may hold others."""
    order = {run: i for i, run in enumerate(dict.fromkeys((task.dataset, task.strategy) for task in tasks))}
    runs = {(task.dataset, task.strategy, task.seed) for task in tasks}
    ours = [run in runs for run in zip(rounds.dataset, rounds.strategy, rounds.seed, strict=True)]
    place = [order.get(run, -1) for run in zip(rounds.dataset, rounds.strategy, strict=True)]
    return (
        rounds.assign(place=place)[ours]
        .sort_values(["place", "seed", "round"], ignore_index=True)
        .drop(columns="place")
    )

"""The grid of a comparison: settings resolved for this machine, and one task per data set, strategy and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from egal_bench.config import Config
from egal_bench.console import console, counted
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError, Interrupted
from egal_bench.runs.task import Task
from egal_bench.strategies import find

if TYPE_CHECKING:
    from egal_bench.models.network import Network

FROZEN_SEED = 0  # a frozen trunk without weights is the same for every seed, so that its features are computed once


def check_feasible(config: Config, datasets: Sequence[Dataset]) -> None:
    """Raise BenchError unless every data set has a name of its own, enough pool samples, and ROIs where needed."""
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


def resolved(config: Config) -> Config:
    """Return `config` with the device and the precision that "auto" stands for on this machine."""
    from egal_bench.models.devices import chosen_device
    from egal_bench.models.precision import chosen_precision

    device = chosen_device(config.device)
    return config.model_copy(update={"device": device, "precision": chosen_precision(config.precision, device)})


def tasks_of(config: Config, datasets: Sequence[Dataset], out: Path) -> list[Task]:
    """Return the tasks of the grid, seed by seed.

    Each network is built once here, so that what is wrong with it is reported before any run starts. In the frozen
    regime the features are computed here.

    Args:
        config: with device and precision resolved.
        datasets: the data sets of the comparison.
        out: folder of the results.
    """
    from egal_bench.models import network, weights

    state, digest = weights.load(config.weights, config.backbone)
    strategies = [find(specification, config).name for specification in config.strategies]
    tasks = []
    for dataset in datasets:
        built = network.of_config(config, dataset, FROZEN_SEED, state)
        features = _features(config, dataset, built, digest, out) if config.regime == "frozen" else None
        identity = config.identity(manifest=dataset.shards.manifest.sha256, weights=digest, device=config.device)
        first = Task(dataset.shards.where, dataset.name, "", 0, config, identity, features, Path())
        for seed in range(config.seeds):
            for strategy in strategies:
                task = replace(first, strategy=strategy, seed=seed)
                tasks.append(replace(task, scratch=scratch_folder(out, task)))
    return tasks


def scratch_folder(out: Path, task: Task) -> Path:
    """Return the folder below `out` for what an interrupted run need not compute again."""
    from egal_bench.tables.results import part

    return part(out / "unfinished", task.config_hash, task.dataset, task.strategy, task.seed).parent


def _features(config: Config, dataset: Dataset, network: Network, digest: str, out: Path) -> Path:
    """Return the folder of the frozen trunk's features, beside the results so that other comparisons share it."""
    from egal_bench.scoring import features

    if config.weights is None:
        console.print("frozen trunk without --weights: its features are random projections, so expect little of them")
    name = features.identity(dataset, config.backbone, digest, config.size, config.precision)
    folder = out.resolve().parent / "features" / f"{dataset.name}-{config.backbone}-{name}"
    if not folder.is_dir():
        try:
            with counted(f"{dataset.name}: features of {config.backbone}", len(dataset.keys)) as advance:
                features.extract(dataset, network, folder, config.device, advance, config.precision)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: the features so far are in {folder}.partial; the same command resumes"
            ) from None
    return folder

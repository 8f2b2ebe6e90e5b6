"""The grid of a comparison: settings resolved for this machine, and one task per data set, strategy and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from egal_bench.config import Config
from egal_bench.console import console, counted
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError, Interrupted
from egal_bench.models.backbones import is_factory
from egal_bench.runs.identity import settings_of
from egal_bench.runs.task import Task
from egal_bench.strategies import find
from egal_bench.tables.folder import ResultsFolder, RunName
from egal_bench.tables.settings import digest
from egal_shards.errors import printable

MAX_NAME = 230  # characters of a percent-encoded name, so that `strategy=NAME` stays within 255

if TYPE_CHECKING:
    from egal_bench.models.network import Network


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


def check_names(names: Iterable[str]) -> None:
    """Raise BenchError for a data set or strategy whose name cannot be that of a folder, before any run starts."""
    for name in names:
        shown = printable(name if len(name) <= 40 else f"{name[:40]}…")
        try:
            length = len(quote(name, safe=""))
        except UnicodeEncodeError:
            raise BenchError(
                f"the name {shown!r} is not UTF-8, so results cannot be filed under it: rename it"
            ) from None
        if length > MAX_NAME:
            raise BenchError(
                f"the name {shown!r} takes {length} characters as a folder, and file systems allow {MAX_NAME}: "
                "rename the shard set, or register the strategy under a shorter name"
            )


def resolved(config: Config) -> Config:
    """Return `config` with the device and the precision that "auto" stands for on this machine.

    Raises:
        BenchError: this machine has no such device, or the settings need CUDA.
    """
    from egal_bench.models.devices import chosen_device, device_kind
    from egal_bench.models.precision import chosen_precision

    device = chosen_device(config.device)
    if config.cuda_graphs and device_kind(device) != "cuda":
        raise BenchError(f"--cuda-graphs: these runs use {device}: leave it out, or use a machine with a GPU")
    return config.model_copy(update={"device": device, "precision": chosen_precision(config.precision, device)})


def tasks_of(
    config: Config, datasets: Sequence[Dataset], folder: ResultsFolder, *, features_here: bool = True
) -> list[Task]:
    """Return the tasks of the grid, seed by seed.

    Each network is built once here, so that what is wrong with it is reported before any run starts.

    Args:
        config: with device and precision resolved.
        datasets: the data sets of the comparison.
        folder: where the results go.
        features_here: whether the features of the frozen regime are computed here, before any run starts.
    """
    if config.regime == "frozen" and config.weights is None and not is_factory(config.backbone):
        console.print("frozen trunk without --weights: its features are random projections, so expect little of them")
    strategies = [find(specification, config) for specification in config.strategies]
    tasks, requested = [], config
    for dataset in datasets:
        config = with_compile(requested, dataset)
        network, digests = network_of(config, dataset, console.print)
        features = None
        if config.regime == "frozen":
            features = features_folder(config, dataset, digests, folder.path)
            if features_here:
                compute_features(config, dataset, network, features)
        for seed in config.seed_ids:
            for strategy in strategies:
                settings = settings_of(config, dataset, strategy, digests)
                run = RunName(dataset.name, strategy.name, seed)
                scratch = folder.scratch(run, digest(settings))
                modules = strategy.strategy.modules
                tasks.append(Task(run, dataset.shards.where, config, settings, features, scratch, modules=modules))
    return tasks


def with_compile(config: Config, dataset: Dataset) -> Config:
    """Return `config` with what "auto" of --compile stands for on `dataset`: the pool decides, or all features."""
    from egal_bench.models.inference import chosen_compile

    images = len(dataset.keys if config.regime == "frozen" else dataset.pool)
    side = config.size or dataset.shards.manifest.image.size
    return config.model_copy(update={
        "compile": chosen_compile(config.compile, config.device, images, side, config.threads)
    })  # fmt: skip


def network_of(
    config: Config, dataset: Dataset, tell: Callable[[str], None] = lambda line: None
) -> tuple[Network, dict[str, str]]:
    """Return the network of `config` for `dataset` with the weights of seed 0, and the digests that identify its trunk.

    Args:
        tell: called with one line that says how the weights were adapted, where they were.
    """
    from egal_bench.models import backbones, network, weights

    state, weights_digest = weights.load(config.weights, config.backbone)
    digests = {"weights": weights_digest, "backbone_source": backbones.source_digest(config.backbone)}
    built = network.of_config(config, dataset, 0, state, tell=tell)
    if is_factory(config.backbone):  # a factory may load weights of its own
        digests["weights"] = weights.digest_of(built.trunk.state_dict())
    return built, digests


def part_of(tasks: Sequence[Task], part: tuple[int, int]) -> Sequence[Task]:
    """Return the i-th of n equal parts of the tasks, for `part` (i, n)."""
    number, parts = part
    return tasks[number - 1 :: parts]


def features_folder(config: Config, dataset: Dataset, digests: Mapping[str, str], out: Path) -> Path:
    """Return the folder of the frozen trunk's features: beside the results, so that other comparisons share it."""
    from egal_bench.scoring import features

    trunk = digests["weights"] + digests["backbone_source"]
    name = features.identity(
        dataset, config.backbone, trunk, config.size, config.precision, config.device, config.compile, _pass_threads()
    )
    return out.resolve().parent / "features" / quote(f"{dataset.name}-{config.backbone}-{name}", safe="(),=")


def _pass_threads() -> int:
    """Return the CPU threads of the pass that computes features: all that PyTorch uses, since no run goes on yet."""
    import torch

    return torch.get_num_threads()


def compute_features(config: Config, dataset: Dataset, network: Network, folder: Path) -> None:
    """Compute the features into `folder`, unless they are there and undamaged."""
    from egal_bench.models.process import reproducible
    from egal_bench.scoring import features

    if not features.intact(folder, len(dataset.keys)):
        try:
            with (
                reproducible(_pass_threads(), tf32=config.precision == "tf32"),
                counted(f"{dataset.name}: features of {config.backbone}", len(dataset.keys)) as advance,
            ):
                features.extract(dataset, network, folder, config.device, advance, config.precision, config.compile)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: the features so far are in {folder}.partial; the same command resumes"
            ) from None

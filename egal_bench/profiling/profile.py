"""Acquisition throughput, stage by stage: what a pool pass costs beyond the network's forward pass, and where."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch.profiler import record_function

from egal_bench.config import Config
from egal_bench.console import console, counted
from egal_bench.dataset import Dataset, open_dataset
from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.models import network as networks
from egal_bench.models import weights
from egal_bench.models.devices import batch_of, chosen_device, device_kind, out_of_memory
from egal_bench.models.inference import inference_network, usable_folds
from egal_bench.models.network import Network
from egal_bench.models.precision import chosen_precision
from egal_bench.models.process import prepare_process, reproducible
from egal_bench.profiling import measurements
from egal_bench.profiling.measuring import interleaved, paired_ratio
from egal_bench.profiling.peers import Peer, peers
from egal_bench.profiling.stages import Resident, Stage, flop_of_trunk, roofs, stages
from egal_bench.runs.data import dataset_paths
from egal_bench.runs.grid import with_compile
from egal_bench.scoring.batches import Step
from egal_bench.scoring.pool_pass import score, scorer
from egal_bench.tables.folder import ResultsFolder
from egal_kernels import PackedRoi

SEED = 0  # draws the samples, and the order in which stages take turns
BATCHES = (8, 16, 32, 64, 128, 256, 512)  # the sizes that `auto` tries, in this order
GAIN = 1.02  # `auto` goes on to larger batches only while each is faster by this factor
SECONDS = 1.0  # target length of one timed run of the network, unless the number of samples is given


@dataclass(frozen=True)
class Profile:
    """A finished profile.

    Attributes:
        rows: rows of the table at `path`; their columns are those of `measurements.SCHEMA`.
        peers: each peer by its name; empty where none was measured.
        path: the Parquet file.
        config: with device, precision and compile resolved.
        batch: images per batch.
        roofs: measured rates, bytes per second or FLOP per second, by name.
        compiling: seconds that the first batch took to compile the trunk; None: it is not compiled.
        folded: how many batch norms the copy for passes has made part of convolutions; "": the network has none.
    """

    rows: list[dict[str, Any]]
    peers: dict[str, Peer]
    path: Path
    config: Config
    batch: int
    roofs: dict[str, float]
    compiling: float | None
    folded: str


@dataclass(frozen=True)
class _Subject:
    """What is measured: a network on the samples of `dataset` at `positions`, in batches of `batch`.

    `network` is as it was trained, `inference` its copy for passes; see `inference_network`.
    """

    network: Network
    inference: Network
    dataset: Dataset
    positions: np.ndarray
    config: Config
    batch: int


def profile(
    config: Config, out: Path, *, batch: int | Literal["auto"] | None, samples: int | None, rounds: int,
    with_peers: bool, trace: Path | None,
) -> Profile:  # fmt: skip
    """Measure a pool pass and write its rates to a new file in `out`.

    Args:
        config: names the shard set (the first of several; none: the phantom), the network and the device.
        out: folder of the profiles.
        batch: images per batch; "auto": the fastest number; None: as many as a pool pass takes.
        samples: images in each timed run; None: as many as the network takes SECONDS for, at least two batches.
        rounds: timed runs of each stage; the stages take turns.
        with_peers: whether other libraries are measured as well.
        trace: file for a Chrome trace of one pass; None: no trace.

    Raises:
        BenchError: a folder is not writable, a number exceeds the pool, or a batch exceeds the memory of the device.
    """
    for folder in (out, *([trace.parent] if trace else [])):
        _check_writable(folder)
    prepare_process()
    device = chosen_device(config.device)
    precision = chosen_precision(config.precision, device)
    config = config.model_copy(update={"device": device, "precision": precision})
    torch.set_num_threads(config.threads)
    ((name, path), *_) = dataset_paths(config, ResultsFolder(out), replace=True).items()
    dataset = open_dataset(path, name)
    config = with_compile(config.model_copy(update={"regime": "finetune"}), dataset)
    state, _ = weights.load(config.weights, config.backbone)
    network = networks.of_config(config, dataset, SEED, state).eval().to(device)
    inference = inference_network(network, device, precision)
    order = np.random.default_rng(SEED).permutation(dataset.pool)
    step = scorer(inference, config, device, needs={"roi"})
    with _as_in_a_run(config):
        size = best_batch(step, dataset, order, device) if batch == "auto" else batch
    size = size or min(batch_of(device), len(order))
    _check_fits("--batch-size", size, order)
    try:
        with _as_in_a_run(config):
            positions = order[: _samples(step, dataset, order, size, samples, device)]
        if config.compile == "on":
            inference = inference_network(network, device, precision, "on", size)
        subject = _Subject(network, inference, dataset, positions, config, size)
        return _measured(subject, out, rounds, with_peers, trace)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise BenchError(f"--batch-size {size}: more than the memory of {device} holds; lower it") from None


def _as_in_a_run(config: Config) -> AbstractContextManager[None]:
    """Return the context in which a run scores: deterministic, and with TF32 only where --precision says so.

    Other libraries are measured outside it, with PyTorch's own settings.
    """
    return reproducible(config.threads, tf32=config.precision == "tf32")


def best_batch(step: Step, dataset: Dataset, order: np.ndarray, device: str) -> int:
    """Return the batch size of BATCHES that scores the most images per second.

    Sizes are tried in ascending order, until one is not faster, exceeds the memory of the device or the pool.

    Args:
        step: scores a batch.
        dataset: the shard set.
        order: positions of the pool, of which a batch takes the first ones.
        device: where `step` runs.
    """
    best, fastest = min(BATCHES[0], len(order)), 0.0
    for size in BATCHES:
        if size > len(order):
            break
        try:
            rate = size / _seconds_of_a_batch(step, dataset, order[:size], device, rounds=5)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        console.print(f"--batch-size auto: {rate:.4g} images per second in batches of {size}")
        if rate < fastest * GAIN:
            break
        best, fastest = size, rate
    return best


def _measured(subject: _Subject, out: Path, rounds: int, with_peers: bool, trace: Path | None) -> Profile:
    """Measure the stages of `subject` and, if asked for, its peers; write the table and the trace."""
    network, dataset, config, device = subject.inference, subject.dataset, subject.config, subject.config.device
    with _as_in_a_run(config):
        compiling = _seconds_of_first_batch(subject) if config.compile == "on" else None
        peak = _peak_mb(
            lambda: score(network, dataset, subject.positions, config, device, needs={"roi"}, batch=subject.batch),
            device,
        )
        resident = Resident.of(network, dataset, subject.positions, config, subject.batch)
        flop = flop_of_trunk(subject.network, resident.images[0][:1])
        by_name, bounds = stages(network, dataset, resident, config, subject.batch, flop), roofs(config)
        runs = {name: stage.run for name, stage in by_name.items()} | {name: run for name, (run, _) in bounds.items()}
        with counted("stages", rounds * len(runs)) as advance:
            seconds = interleaved(runs, rounds, np.random.default_rng(SEED), advance)
    rates = {name: amount / float(np.median(seconds[name])) for name, (_, amount) in bounds.items()}
    rows = [_row(name, stage, seconds, len(subject.positions), rates) for name, stage in by_name.items()]
    compared = peers(subject.network, resident.images[0], resident.rois[0], config) if with_peers else {}
    rows += _peer_rows(network, resident, config, compared, rounds)
    if trace:
        _trace({name: by_name[name].run for name in ("pass", "acquisition")}, trace)
    rows = [_settings(subject) | {"peak_mb": peak} | row for row in rows]
    path = out / f"{_plain(dataset.name)}-{_plain(config.backbone)}-{datetime.now(UTC):%Y%m%dT%H%M%S}.parquet"
    measurements.write(path, rows, device)
    return Profile(rows, compared, path, config, subject.batch, rates, compiling, _folded(subject.network, config))


def _folded(network: Network, config: Config) -> str:
    """Return a phrase on the batch norms that the copy of `network` for passes does without."""
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.trunk.modules())
    folds = usable_folds(network, config.precision)
    folded = len(folds.behind) + len(folds.before)
    why = "" if folded == norms else " (docs/passes.md says which are not)"
    are = "batch norm is" if norms == 1 else "batch norms are"
    return f"{folded} of {norms} {are} part of convolutions{why}" if norms else ""


def _settings(subject: _Subject) -> dict[str, Any]:
    """Return the columns that are the same in every row of a profile."""
    config, image = subject.config, subject.dataset.shards.manifest.image
    return {
        "dataset": subject.dataset.name, "backbone": config.backbone, "batch": subject.batch,
        "precision": config.precision, "size": subject.network.size or image.size, "threads": config.threads,
    }  # fmt: skip


def _samples(step: Step, dataset: Dataset, order: np.ndarray, batch: int, requested: int | None, device: str) -> int:
    """Return the number of images in a timed run, rounded to full batches of the pool."""
    if requested is not None:
        _check_fits("--samples", requested, order)
        return max(requested // batch, 1) * batch
    batches = SECONDS / _seconds_of_a_batch(step, dataset, order[:batch], device, rounds=1)
    return min(max(round(batches), 2), len(order) // batch) * batch


def _seconds_of_a_batch(step: Step, dataset: Dataset, positions: np.ndarray, device: str, rounds: int) -> float:
    (batch,) = dataset.shards.batches(positions, len(positions), device)
    run = _scoring(step, batch.images, PackedRoi(batch.roi, dataset.shards.manifest.image.size))
    return float(np.median(interleaved({"": run}, rounds, np.random.default_rng(SEED))[""]))


def _seconds_of_first_batch(subject: _Subject) -> float:
    """Return how long a compiled trunk takes for its first batch."""
    step = scorer(subject.inference, subject.config, subject.config.device, needs={"roi"})
    shards = subject.dataset.shards
    (batch,) = shards.batches(subject.positions[: subject.batch], subject.batch, subject.config.device)
    run = _scoring(step, batch.images, PackedRoi(batch.roi, shards.manifest.image.size))
    start = perf_counter()
    run()
    return perf_counter() - start


def _scoring(step: Step, images: torch.Tensor, roi: PackedRoi) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> torch.Tensor:
        return step(images, roi)["rows"].cpu()  # waits for the device

    return run


def _row(name: str, stage: Stage, seconds: dict[str, np.ndarray], samples: int, roofs: dict[str, float]) -> dict:
    median = float(np.median(seconds[name]))
    roof = roofs.get(stage.roof)
    return measurements.row(
        "profile", name, samples, seconds[name],
        mb_per_s=stage.bytes / median / 1e6 if stage.bytes else None,
        share_of_forward=paired_ratio(seconds["forward"], seconds[name])[0],
        roof=stage.roof or None, share_of_roof=stage.amount / median / roof if roof else None,
    )  # fmt: skip


def _peer_rows(
    network: Network, resident: Resident, config: Config, compared: dict[str, Peer], rounds: int
) -> list[dict[str, Any]]:
    """Return the rates of the peers without a problem, and of egal-bench on the same batch in the same rounds."""
    timed = {name: peer.run for name, peer in compared.items() if not peer.problem}
    if not timed:
        return []
    images, roi = resident.images[0], resident.rois[0]
    runs = {"ours": _scoring(scorer(network, config, config.device, needs={"roi"}), images, roi), **timed}
    with counted("peers", rounds * len(runs)) as advance:
        seconds = interleaved(runs, rounds, np.random.default_rng(SEED), advance)
    return [measurements.row("profile: peers", name, len(images), seconds[name]) for name in runs]


def _trace(runs: Mapping[str, Callable[[], object]], path: Path) -> None:
    """Execute the runs one after another and write what all threads did, for Perfetto or chrome://tracing."""
    from torch._C._profiler import _ExperimentalConfig

    with torch.profiler.profile(experimental_config=_ExperimentalConfig(profile_all_threads=True)) as recorded:
        for name, run in runs.items():
            with record_function(name):
                run()
    with replacing(path) as temporary:
        recorded.export_chrome_trace(str(temporary))


def _peak_mb(run: Callable[[], object], device: str) -> float | None:
    """Return the most memory, MB, that was in use during `run`: on the GPU, or of this process; None: unknown."""
    if device_kind(device) == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) / 1e6
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if os.access(reset, os.W_OK):
        reset.write_text("5")  # tells Linux to forget the peak so far
    run()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(peak[1]) * 1024 / 1e6 if peak else None


def _check_writable(folder: Path) -> None:
    """Raise BenchError, before anything is measured, unless `folder` can be made and written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder}: {error.strerror}; choose another folder") from None
    if not os.access(folder, os.W_OK):
        raise BenchError(f"{folder}: not writable; choose another folder")


def _check_fits(flag: str, number: int, pool: np.ndarray) -> None:
    if number > len(pool):
        raise BenchError(f"{flag} {number}: the pool has {len(pool)} samples; lower it")


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)

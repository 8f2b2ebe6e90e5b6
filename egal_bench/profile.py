"""Acquisition throughput, stage by stage: what a pool pass costs beyond the network's forward pass, and where."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.profiler import record_function

from egal_bench import measurements, model, precision, weights
from egal_bench.config import Config
from egal_bench.dataset import Dataset, open_dataset, phantom_set
from egal_bench.devices import chosen_device, out_of_memory
from egal_bench.errors import BenchError, unknown
from egal_bench.files import whole
from egal_bench.measuring import interleaved, paired_ratio
from egal_bench.model import Network
from egal_bench.pool_pass import BATCH, CUDA_BATCH, Step, score, scorer
from egal_bench.profile_peers import Peer, peers
from egal_bench.profile_stages import Resident, Stage, roofs, stages
from egal_bench.progress import console, counted
from egal_kernels import PackedRoi
from egal_kernels.conventions import CONVENTIONS

SEED = 0  # of which samples, and of the order in which stages take turns
BATCHES = (8, 16, 32, 64, 128, 256, 512)  # that `auto` tries, as long as each is faster than the last
GAIN = 1.02  # a larger batch has to be faster by this factor
SECONDS = 1.0  # of one timed run of the network, unless `samples` says how long it is


@dataclass(frozen=True)
class Profile:
    """`rows` of the table at `path` (see measurements.SCHEMA), and the measured `roofs`, bytes or FLOP a second."""

    rows: list[dict[str, Any]]
    peers: dict[str, Peer]
    path: Path
    config: Config
    batch: int
    roofs: dict[str, float]


def profile(
    config: Config, out: Path, *, batch: int | Literal["auto"] | None, samples: int | None, rounds: int,
    with_peers: bool, trace: Path | None,
) -> Profile:  # fmt: skip
    """Measure a pool pass of `config`'s first shard set (none: the phantom) and write it to a new file in `out`.

    Args:
        batch: images in one; "auto": the fastest; None: as many as a pool pass takes.
        samples: images in each timed run; None: as many as the network takes SECONDS for, at least two batches.
        rounds: timed runs of each stage, in turns. with_peers: other libraries' too. trace: file of a Chrome trace.
    """
    if config.explain_convention not in CONVENTIONS:
        raise unknown("convention", config.explain_convention, CONVENTIONS)
    for folder in (out, *([trace.parent] if trace else [])):
        _check_writable(folder)
    config = config.model_copy(update={"device": chosen_device(config.device)})
    torch.set_num_threads(config.threads)
    dataset = open_dataset(config.shards[0] if config.shards else phantom_set(config, out))
    config = config.model_copy(update={"precision": precision.chosen(config, dataset, config.device)})
    state, _ = weights.load(config.weights, config.backbone)
    network = model.of_config(config, dataset, SEED, state).eval().to(config.device)
    order = np.random.default_rng(SEED).permutation(dataset.pool)
    step = scorer(network, config, config.device, overlap=True)
    size = best_batch(step, dataset, order, config.device) if batch == "auto" else batch
    size = size or min(CUDA_BATCH if config.device == "cuda" else BATCH, len(order))
    _check_fits("--batch-size", size, order)
    try:
        positions = order[: _samples(step, dataset, order, size, samples, config.device)]
        return _measured(network, dataset, positions, config, out, size, rounds, with_peers, trace)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise BenchError(f"--batch-size {size}: more than the memory of {config.device} holds; lower it") from None


def _measured(
    network: Network, dataset: Dataset, positions: np.ndarray, config: Config, out: Path, batch: int, rounds: int,
    with_peers: bool, trace: Path | None,
) -> Profile:  # fmt: skip
    peak = _peak_mb(
        lambda: score(network, dataset, positions, config, config.device, overlap=True, batch=batch), config.device
    )
    there = Resident.of(network, dataset, positions, config, batch)
    found, bounds = stages(network, dataset, there, config, batch), roofs(config)
    runs = {name: stage.run for name, stage in found.items()} | {name: run for name, (run, _) in bounds.items()}
    with counted("stages", rounds * len(runs)) as advance:
        seconds = interleaved(runs, rounds, np.random.default_rng(SEED), advance)
    rates = {name: amount / float(np.median(seconds[name])) for name, (_, amount) in bounds.items()}
    rows = [_row(name, stage, seconds, len(positions), rates) for name, stage in found.items()]
    compared = peers(network, there.images[0], there.rois[0], config) if with_peers else {}
    rows += _peer_rows(network, there, config, compared, rounds)
    if trace:
        _trace({name: found[name].run for name in ("pass", "acquisition")}, trace)
    about = {
        "dataset": dataset.name, "backbone": config.backbone, "batch": batch, "precision": config.precision,
        "size": network.size or dataset.shards.manifest.image.size, "threads": config.threads, "peak_mb": peak,
    }  # fmt: skip
    rows = [about | row for row in rows]
    path = out / f"{_plain(dataset.name)}-{_plain(config.backbone)}-{datetime.now(UTC):%Y%m%dT%H%M%S}.parquet"
    measurements.write(path, rows, config.device)
    return Profile(rows, compared, path, config, batch, rates)


def best_batch(step: Step, dataset: Dataset, order: np.ndarray, device: str) -> int:
    """The batch of BATCHES that scores most images a second on the device: they grow while it pays, or fits."""
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
        console.print(f"--batch-size auto: {size} images in a batch, {rate:.4g} a second")
        if rate < fastest * GAIN:
            break
        best, fastest = size, rate
    return best


def _samples(step: Step, dataset: Dataset, order: np.ndarray, batch: int, wanted: int | None, device: str) -> int:
    """Images in a timed run, whole batches of the pool."""
    if wanted is not None:
        _check_fits("--samples", wanted, order)
        return max(wanted // batch, 1) * batch
    lasting = SECONDS / _seconds_of_a_batch(step, dataset, order[:batch], device, rounds=1)
    return min(max(round(lasting), 2), len(order) // batch) * batch


def _seconds_of_a_batch(step: Step, dataset: Dataset, positions: np.ndarray, device: str, rounds: int) -> float:
    (batch,) = dataset.shards.batches(positions, len(positions), device)
    run = _scoring(step, batch.images, PackedRoi(batch.roi, dataset.shards.manifest.image.size))
    return float(np.median(interleaved({"": run}, rounds, np.random.default_rng(SEED))[""]))


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
    network: Network, there: Resident, config: Config, found: dict[str, Peer], rounds: int
) -> list[dict[str, Any]]:
    """Rates of the peers that agree, next to ours on the same batch in the same rounds."""
    timed = {name: peer.run for name, peer in found.items() if not peer.why}
    if not timed:
        return []
    images, roi = there.images[0], there.rois[0]
    runs = {"ours": _scoring(scorer(network, config, config.device, overlap=True), images, roi), **timed}
    with counted("peers", rounds * len(runs)) as advance:
        seconds = interleaved(runs, rounds, np.random.default_rng(SEED), advance)
    return [measurements.row("profile: peers", name, len(images), seconds[name]) for name in runs]


def _trace(runs: Mapping[str, Callable[[], object]], path: Path) -> None:
    """Write what all threads do in these runs, one after another, as chrome://tracing and Perfetto read it."""
    from torch._C._profiler import _ExperimentalConfig

    with torch.profiler.profile(experimental_config=_ExperimentalConfig(profile_all_threads=True)) as recorded:
        for name, run in runs.items():
            with record_function(name):
                run()
    with whole(path) as temporary:
        recorded.export_chrome_trace(str(temporary))


def _peak_mb(run: Callable[[], object], device: str) -> float | None:
    """Most memory in use during `run`, MB: allocated on the GPU, or of this whole process; None where unknown."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 1e6
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if os.access(reset, os.W_OK):
        reset.write_text("5")  # the peak begins anew
    run()
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 / 1e6 if found else None


def _check_writable(folder: Path) -> None:
    """Before minutes are spent on what could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder}: {error.strerror}; choose another folder") from None
    if not os.access(folder, os.W_OK):
        raise BenchError(f"{folder}: not writable; choose another folder")


def _check_fits(flag: str, wanted: int, pool: np.ndarray) -> None:
    if wanted > len(pool):
        raise BenchError(f"{flag} {wanted}: the pool has {len(pool)} samples; lower it")


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)

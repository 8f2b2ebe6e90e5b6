"""Acquisition throughput, stage by stage: what a pool pass costs beyond the network's forward pass, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egal_bench import measurements, model, precision, weights
from egal_bench.config import Config
from egal_bench.dataset import Dataset, open_dataset, phantom_set
from egal_bench.devices import chosen_device
from egal_bench.measuring import interleaved, paired_ratio
from egal_bench.model import Network
from egal_bench.pool_pass import score, scorer
from egal_bench.profile_peers import Peer, peers
from egal_bench.profile_stages import Resident, Stage, first_pass, roofs, stages
from egal_bench.progress import console, counted

SEED = 0  # of which samples, and of the order in which stages take turns
BATCHES = (8, 16, 32, 64, 128, 256, 512)  # that `auto` tries, as long as each is faster than the last
GAIN = 1.02  # a larger batch has to be faster by this factor


@dataclass(frozen=True)
class Profile:
    """`rows` of the table (see measurements.SCHEMA); `forward_share`: of the pass, of scoring, with their intervals."""

    rows: list[dict[str, Any]]
    peers: dict[str, Peer]
    path: Path
    config: Config
    batch: int
    roofs: dict[str, float]


def profile(
    config: Config, out: Path, *, batch: int | None, samples: int, rounds: int, with_peers: bool, trace: Path | None
) -> Profile:  # fmt: skip
    """Measure a pool pass of `config`'s first shard set (none: the phantom) and write it to a new file in `out`.

    Args:
        batch: images in one; None: the fastest. samples: images in each timed run, a few batches.
        rounds: timed runs of each stage, in turns. with_peers: other libraries' too. trace: file of a Chrome trace.
    """
    config = config.model_copy(update={"device": chosen_device(config.device)})
    torch.set_num_threads(config.threads)
    dataset = open_dataset(config.shards[0] if config.shards else phantom_set(config, out))
    config = config.model_copy(update={"precision": precision.chosen(config, dataset, config.device)})
    state, _ = weights.load(config.weights, config.backbone)
    network = model.of_config(config, dataset, SEED, state).eval().to(config.device)
    order = np.random.default_rng(SEED).permutation(dataset.pool)
    if batch is None:
        batch = best_batch(network, dataset, order, config)
    positions = order[: max(samples // batch, 1) * batch]
    there = Resident.of(network, dataset, positions, config, batch)
    found = stages(network, dataset, there, config, batch)
    found["first pass"] = first_pass(network, dataset, positions, config, batch)
    bounds = roofs(config)
    runs = {name: stage.run for name, stage in found.items()} | {name: run for name, (run, _) in bounds.items()}
    with counted("stages", rounds * len(runs)) as advance:
        seconds = interleaved(runs, rounds, np.random.default_rng(SEED), advance)
    rates = {name: amount / float(np.median(seconds[name])) for name, (_, amount) in bounds.items()}
    rows = [_row(name, stage, seconds, len(positions), rates) for name, stage in found.items()]
    compared = peers(network, there.images[0], there.rois[0], config) if with_peers else {}
    rows += _peer_rows(network, there, config, compared, rounds)
    if trace:
        _trace(lambda: score(network, dataset, positions, config, config.device, overlap=True, batch=batch), trace)
    peak = _peak_mb(config.device)
    about = {
        "dataset": dataset.name, "backbone": config.backbone, "batch": batch, "precision": config.precision,
        "size": network.size or dataset.shards.manifest.image.size, "threads": config.threads, "peak_mb": peak,
    }  # fmt: skip
    rows = [about | row for row in rows]
    path = out / f"{_plain(dataset.name)}-{_plain(config.backbone)}-{datetime.now(UTC):%Y%m%dT%H%M%S}.parquet"
    measurements.write(path, rows, config.device)
    return Profile(rows, compared, path, config, batch, rates)


def best_batch(network: Network, dataset: Dataset, order: np.ndarray, config: Config) -> int:
    """The batch of BATCHES that scores most images a second on the device: they grow while it pays, or fits."""
    step, best, fastest = scorer(network, config, config.device, overlap=True), BATCHES[0], 0.0
    for size in BATCHES:
        if size > len(order):
            break
        try:
            seconds = _of_a_batch(network, dataset, order[:size], config, step)
        except torch.OutOfMemoryError:
            break
        if size / seconds < fastest * GAIN:
            break
        best, fastest = size, size / seconds
    console.print(f"--batch-size auto: {best} images, {fastest:.4g} a second")
    return best


def _of_a_batch(network: Network, dataset: Dataset, positions: np.ndarray, config: Config, step: Callable) -> float:
    there = Resident.of(network, dataset, positions, config, len(positions))

    @torch.inference_mode()
    def run() -> None:
        step(there.images[0], there.rois[0])["rows"].cpu()  # waits for the device

    return float(np.median(interleaved({"": run}, 5, np.random.default_rng(SEED))[""]))


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
    step = scorer(network, config, config.device, overlap=True)

    @torch.inference_mode()
    def ours() -> None:
        step(there.images[0], there.rois[0])["rows"].cpu()

    runs = {"ours": ours, **{name: _waited(run) for name, run in timed.items()}}
    with counted("peers", rounds * len(runs)) as advance:
        seconds = interleaved(runs, rounds, np.random.default_rng(SEED), advance)
    size = len(there.images[0])
    return [measurements.row("profile: peers", name, size, seconds[name]) for name in runs]


def _waited(run: Callable[[], torch.Tensor]) -> Callable[[], object]:
    return lambda: run().cpu()


def _trace(run: Callable[[], object], path: Path) -> None:
    """Write what all threads do in one run, as chrome://tracing and Perfetto read it."""
    from torch._C._profiler import _ExperimentalConfig

    with torch.profiler.profile(experimental_config=_ExperimentalConfig(profile_all_threads=True)) as recorded:
        run()
    recorded.export_chrome_trace(str(path))


def _peak_mb(device: str) -> float | None:
    """Of the GPU's memory, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")  # not getrusage, whose peak includes that of the parent process
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 / 1e6 if found else None


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)

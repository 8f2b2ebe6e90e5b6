"""The stages of a pool pass, each alone and all together, as runs over the same samples; and the roofs above them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.devices import wait_for
from egal_bench.model import Network
from egal_bench.pool_pass import explained, score, scorer
from egal_bench.precision import autocast
from egal_bench.scores import Scores, as_rows
from egal_bench.strategies import Pool, find
from egal_kernels import PackedRoi
from egal_shards.decoding import decode_span
from egal_shards.transfer import Transfer

MEMCPY_BYTES = 64 << 20
GEMM_SIDE = 1024

MEANING = {
    "read": "samples' bytes from the shards' files (of the operating system's cache)",
    "decode": "these bytes to arrays in one thread, SHA-256 checked: as where a process first reads them",
    "batches": "read and decode to batches in threads, fingerprints checked: as in every later reading",
    "transfer": "batches to the device; to the CPU they are handed over, not copied",
    "forward": "images on the device to logits: trunk and head, without an explanation",
    "explanation": "feature maps and ROIs to logits, entropy and overlap counts: `acquire` alone",
    "scoring": "images and ROIs on the device to scores: trunk and `acquire`",
    "acquisition": "scores to ranked queries: entropy + λ·misalignment",
    "pass": "the pool pass: from the shards' files to the table of scores, stages overlapping",
}


@dataclass(frozen=True)
class Stage:
    """`run()` takes all samples through the stage and waits for the device.

    `amount` is what one run moves (bytes) or computes (FLOP), `roof` the measured rate that bounds it: a name in
    `roofs`; "" where none does.
    """

    run: Callable[[], object]
    bytes: int = 0
    amount: float = 0
    roof: str = ""


@dataclass(frozen=True)
class Resident:
    """Batches of the samples at `positions`, on the device: lists of images, ROIs and feature maps."""

    positions: np.ndarray
    images: list[Tensor]
    rois: list[PackedRoi]
    maps: list[Tensor]

    @classmethod
    def of(cls, network: Network, dataset: Dataset, positions: np.ndarray, config: Config, batch: int) -> Resident:
        """Read, and passed through the trunk, once."""
        height = dataset.shards.manifest.image.size
        batches = list(dataset.shards.batches(positions, batch, config.device))
        images, rois = [one.images for one in batches], [PackedRoi(one.roi, height) for one in batches]
        with torch.inference_mode(), autocast(config.device, config.precision):
            return cls(positions, images, rois, [network.features(one) for one in images])


def stages(network: Network, dataset: Dataset, there: Resident, config: Config, batch: int) -> dict[str, Stage]:
    """The stages by name, in the order of MEANING; `config.device` and `config.precision` are settled."""
    device, rows, spec = config.device, dataset.shards.rows, dataset.shards.manifest
    spans = list(_spans(dataset, there.positions))
    hosts = list(dataset.shards.batches(there.positions, batch))
    images, rois, maps = (sum(_bytes(one)) for one in (there.images, [roi.bits for roi in there.rois], there.maps))
    step, read = scorer(network, config, device, overlap=True), sum(map(len, spans))
    scored = score(network, dataset, there.positions, config, device, overlap=True, batch=batch)
    rank, transfer = _ranking(dataset, there.positions, scored, config), Transfer(device)

    def decode() -> None:
        for i, span in zip(there.positions.tolist(), spans, strict=True):
            decode_span(span, i, rows, spec)

    def forward(one: Tensor) -> Tensor:
        with autocast(device, config.precision):
            maps = network.features(one)
        return network.head(maps.mean((2, 3), dtype=torch.float32))

    def each(run: Callable[..., object], *lists: list) -> Callable[[], None]:
        @torch.inference_mode()
        def over_batches() -> None:
            for given in zip(*lists, strict=True):
                run(*given)
            wait_for(device)

        return over_batches

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.features(there.images[0][:1])
    flop = counter.get_total_flops() * len(there.positions)
    return {
        "read": Stage(lambda: list(_spans(dataset, there.positions)), read, read, "memcpy"),
        "decode": Stage(decode, read, read, "memcpy"),
        "batches": Stage(lambda: list(dataset.shards.batches(there.positions, batch)), read, read, "memcpy"),
        "transfer": Stage(
            each(lambda one: transfer.receive(transfer.send((one.images, one.roi))), hosts),
            0 if device == "cpu" else images + rois,
        ),
        "forward": Stage(each(forward, there.images), images, flop, "GEMM"),
        "explanation": Stage(
            each(lambda maps, roi: as_rows(explained(network, maps, roi, config)), there.maps, there.rois),
            maps + rois, maps + rois, "memcpy",
        ),
        "scoring": Stage(each(step, there.images, there.rois), images + rois, flop, "GEMM"),
        "acquisition": Stage(rank),
        "pass": Stage(
            lambda: score(network, dataset, there.positions, config, device, overlap=True, batch=batch),
            read, flop, "GEMM",
        ),
    }  # fmt: skip


def roofs(config: Config) -> dict[str, tuple[Callable[[], object], float]]:
    """What bounds the stages, as a run and its amount: bytes copied by "memcpy", FLOP of a "GEMM" as the trunk's."""
    source = torch.zeros(MEMCPY_BYTES, dtype=torch.uint8, device=config.device)
    target = torch.empty_like(source)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    a, b = (torch.ones((GEMM_SIDE, GEMM_SIDE), dtype=dtype, device=config.device) for _ in range(2))

    def waiting(run: Callable[[], object]) -> Callable[[], None]:
        def done() -> None:
            run()
            wait_for(config.device)

        return done

    return {
        "memcpy": (waiting(lambda: target.copy_(source)), MEMCPY_BYTES),
        "GEMM": (waiting(lambda: torch.matmul(a, b)), 2 * GEMM_SIDE**3),
    }


def _spans(dataset: Dataset, positions: np.ndarray) -> Iterator[bytes]:
    """The members of each sample, as they lie in its shard."""
    rows = dataset.shards.rows
    files = {shard: dataset.shards.open_shard(shard) for shard in np.unique(rows.shard[positions]).tolist()}
    try:
        for i in positions.tolist():
            start, end = rows.span(i)
            yield os.pread(files[int(rows.shard[i])].fileno(), end - start, start)
    finally:
        for file in files.values():
            file.close()


def _bytes(tensors: list[Tensor]) -> list[int]:
    return [tensor.numel() * tensor.element_size() for tensor in tensors]


def _ranking(dataset: Dataset, positions: np.ndarray, scored: Scores, config: Config) -> Callable[[], np.ndarray]:
    """The query of `egal` on these scores, from the rows that the device sends."""
    strategy = find("egal")
    return lambda: strategy(
        Pool(
            strategy, keys=dataset.keys[positions], logits=scored.logits, entropy=scored.entropy,
            labels_revealed=dataset.labels[:0], budget=1, rng=np.random.default_rng(0), config=config,
            overlap=scored.overlap,
        )
    )  # fmt: skip

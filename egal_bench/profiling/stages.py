"""The stages of a pool pass, each alone and all together, as runs over the same samples; and the roofs above them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.models.devices import device_kind, wait_for
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_bench.scoring.pool_pass import explained, score, scorer
from egal_bench.scoring.scores import Scores, as_rows
from egal_bench.strategies import Pool, find
from egal_kernels import PackedRoi
from egal_shards.decoding import decode_span
from egal_shards.transfer import Transfer

CUDA_MEMCPY_BYTES = 512 << 20  # more than the cache of any GPU
CPU_MEMCPY_BYTES = (64 << 20, 256 << 20)  # limits on a CPU: as many bytes as its last cache holds, within these
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # on Linux, such as "32768K"
GEMM_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 1024}  # large enough to keep every multiplier of the device busy
PRECISIONS = {"float32": "float32", "tf32": "TF32", "bfloat16": "bfloat16"}  # --precision → name in a roof

MEANING = {
    "read": "reads the bytes of the samples from the shard files (cached by the operating system)",
    "decode": "decodes these bytes in one thread and checks their SHA-256, as on a sample's first reading",
    "batches": "reads and decodes batches in threads and checks fingerprints, as on every later reading",
    "transfer": "copies batches to the device; on the CPU there is nothing to copy",
    "forward": "computes logits from images on the device: trunk and head, without an explanation",
    "explanation": "computes logits, entropy and overlap counts from feature maps and ROIs: `acquire` alone",
    "scoring": "computes scores from images and ROIs on the device: trunk and `acquire`",
    "acquisition": "ranks the samples by their scores: entropy + λ·misalignment",
    "pass": "does all of this, from shard files to the table of scores, the stages at the same time",
}


@dataclass(frozen=True)
class Stage:
    """One stage of the pool pass.

    Attributes:
        run: takes all samples through the stage and waits for the device.
        bytes: what the stage reads in one run; 0: unknown.
        amount: what one run moves at least (bytes read and written) or computes (FLOP), in the unit of its roof.
        roof: name in `roofs` of the measured rate that bounds the stage; "": none does.
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
        """Return the samples at `positions` in batches of `batch`, read and passed through the trunk once."""
        height = dataset.shards.manifest.image.size
        batches = list(dataset.shards.batches(positions, batch, config.device))
        images = [batch.images for batch in batches]
        rois = [PackedRoi(batch.roi, height) for batch in batches]
        with torch.inference_mode(), autocast(config.device, config.precision):
            return cls(positions, images, rois, [network.features(batch) for batch in images])


def stages(
    network: Network, dataset: Dataset, resident: Resident, config: Config, batch: int, flop_per_image: int
) -> dict[str, Stage]:  # fmt: skip
    """Return the stages by name, in the order of MEANING.

    Args:
        network: on the device.
        dataset: the shard set.
        resident: the samples that every stage processes.
        config: with device and precision resolved.
        batch: images per batch.
        flop_per_image: floating-point operations of the trunk; see `flop_of_trunk`.
    """
    device, shards, positions = config.device, dataset.shards, resident.positions
    spans = list(_spans(dataset, positions))
    host_batches = list(shards.batches(positions, batch))
    span_bytes, image_bytes = sum(map(len, spans)), _bytes(resident.images)
    roi_bytes, map_bytes = _bytes(roi.bits for roi in resident.rois), _bytes(resident.maps)
    flop = flop_per_image * len(positions)
    transfer, step = Transfer(device), scorer(network, config, device, needs={"roi"})

    def decode() -> None:
        for position, span in zip(positions.tolist(), spans, strict=True):
            decode_span(span, position, shards.rows, shards.manifest)

    def forward(images: Tensor) -> Tensor:
        with autocast(device, config.precision):
            maps = network.features(images)
        return network.head(maps.mean((2, 3), dtype=torch.float32))

    def pool_pass() -> Scores:
        return score(network, dataset, positions, config, device, needs={"roi"}, batch=batch)

    def each(run: Callable[..., object], *batches: list) -> Callable[[], None]:
        @torch.inference_mode()
        def over_batches() -> None:
            for tensors in zip(*batches, strict=True):
                run(*tensors)
            wait_for(device)

        return over_batches

    gemm = gemm_name(config.precision)
    return {
        "read": Stage(lambda: list(_spans(dataset, positions)), span_bytes, 2 * span_bytes, "memcpy"),
        "decode": Stage(decode, span_bytes, span_bytes, "memcpy"),
        "batches": Stage(lambda: list(shards.batches(positions, batch)), span_bytes, span_bytes, "memcpy"),
        "transfer": Stage(
            each(lambda batch: transfer.receive(transfer.send((batch.images, batch.roi))), host_batches),
            0 if device == "cpu" else image_bytes + roi_bytes,
        ),
        "forward": Stage(each(forward, resident.images), image_bytes, flop, gemm),
        "explanation": Stage(
            each(lambda maps, roi: as_rows(explained(network, maps, roi, config)), resident.maps, resident.rois),
            map_bytes + roi_bytes, map_bytes + roi_bytes, "memcpy",
        ),
        "scoring": Stage(each(step, resident.images, resident.rois), image_bytes + roi_bytes, flop, gemm),
        "acquisition": Stage(_ranking(dataset, positions, pool_pass(), config)),
        "pass": Stage(pool_pass, span_bytes, flop, gemm),
    }  # fmt: skip


def roofs(config: Config) -> dict[str, tuple[Callable[[], object], float]]:
    """Return what bounds the stages: name → one run, and the amount that it moves or computes.

    "memcpy" copies bytes on the device, more than its caches hold; each byte is read and written, so it counts twice.
    "GEMM …" multiplies large matrices of random numbers in the precision of the trunk, in FLOP. (Zeros and ones would
    take less power, with which a GPU runs faster than with real numbers.)
    """
    kind = device_kind(config.device)
    count = CUDA_MEMCPY_BYTES if kind == "cuda" else _cpu_memcpy_bytes()
    source = torch.zeros(count, dtype=torch.uint8, device=config.device)
    target = torch.zeros_like(source)
    dtype, side = torch.bfloat16 if config.precision == "bfloat16" else torch.float32, GEMM_SIDE[kind]
    generator = torch.Generator(config.device).manual_seed(0)
    a, b = (torch.randn((side, side), generator=generator, device=config.device).to(dtype) for _ in range(2))

    def waiting(run: Callable[[], object]) -> Callable[[], None]:
        def run_and_wait() -> None:
            run()
            wait_for(config.device)

        return run_and_wait

    return {
        "memcpy": (waiting(lambda: target.copy_(source)), 2 * count),
        gemm_name(config.precision): (waiting(lambda: torch.matmul(a, b)), 2 * side**3),
    }


def gemm_name(precision: str) -> str:
    """Return the name of the roof of a trunk in `precision`, such as "GEMM TF32"."""
    return f"GEMM {PRECISIONS[precision]}"


def _cpu_memcpy_bytes() -> int:
    """Return how many bytes to copy on the CPU: source and target together are larger than the last cache."""
    least, most = CPU_MEMCPY_BYTES
    try:
        cache = int(LAST_CACHE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):  # not Linux, or a machine that does not tell
        cache = most
    return min(max(cache, least), most)


def _spans(dataset: Dataset, positions: np.ndarray) -> Iterator[bytes]:
    """Yield the bytes of each sample as they lie in its shard, tar headers included."""
    rows = dataset.shards.rows
    files = {shard: dataset.shards.open_shard(shard) for shard in np.unique(rows.shard[positions]).tolist()}
    try:
        for position in positions.tolist():
            start, end = rows.span(position)
            yield os.pread(files[int(rows.shard[position])].fileno(), end - start, start)
    finally:
        for file in files.values():
            file.close()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def flop_of_trunk(network: Network, image: Tensor) -> int:
    """Return the floating-point operations of a trunk that is not compiled on one image [1, C, H, W]."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.features(image)
    return counter.get_total_flops()


def _ranking(dataset: Dataset, positions: np.ndarray, scores: Scores, config: Config) -> Callable[[], object]:
    """Return a function that makes the query of `egal` on these scores."""
    strategy, count = find("egal"), len(positions)
    pool = Pool(
        keys=dataset.keys[positions], logits=scores.logits, entropy=scores.entropy, labelled_keys=dataset.keys[:0],
        labelled_labels=dataset.labels[:0], labelled_groups=dataset.groups[:0], groups=dataset.groups[positions],
        classes=tuple(dataset.shards.classes),
        round=1, budget=count, rng=np.random.default_rng(0), tie_order=np.arange(count), config=config,
        needs=strategy.needs, name=strategy.name, private={"overlap": scores.overlap},
    )  # fmt: skip
    return lambda: strategy(pool)

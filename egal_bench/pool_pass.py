"""One pass of a network over samples: shards → batches → trunk → `acquire` → a few numbers a sample."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.devices import out_of_memory
from egal_bench.errors import BenchError
from egal_bench.model import Network
from egal_bench.precision import autocast
from egal_bench.progress import console
from egal_bench.scores import Scores, as_rows, check_finite, of_columns
from egal_bench.spool import Spool
from egal_bench.weights import digest_of
from egal_kernels import Acquisition, PackedRoi, acquire, explain, linear_head

BATCH = 32  # images
CUDA_BATCH = 256
LAG = 2  # batches by which the host follows a CUDA device

Step = Callable[[Tensor, PackedRoi], dict[str, Tensor]]  # images and ROIs of B samples → tensors of B rows


def score(
    network: Network, dataset: Dataset, positions: np.ndarray, config: Config, device: str,
    *, overlap: bool, features: bool = False, folder: Path | None = None, batch: int | None = None,
) -> Scores:  # fmt: skip
    """Scores of the samples at `positions`, by `network` in evaluation mode; memory does not grow with their images.

    What is computed goes to `folder` at once, filed under all that decides it, the network's weights included: a
    pass that was interrupted, or is asked for again, computes only what is missing there.

    Args:
        overlap: with the Grad-CAM's overlap with the ROIs. features: with the pooled features, memory-mapped.
        folder: on the disk that is to hold the numbers; None: a temporary one. batch: as of `over`.

    Raises:
        BenchError: a sample's numbers are not finite, naming it; half a batch exceeds the memory; the disk is full.
        ShardError: a shard is damaged or unreadable.
    """
    if folder is not None:
        folder = folder / _identity(network, dataset, positions, config, device, f"{overlap} {features}")
    spool = Spool(len(positions), folder, "scores")
    soft = config.overlap == "soft"
    step = scorer(network, config, device, overlap=overlap, features=features)
    for found in over(dataset, positions[spool.done :], step, device, batch):
        check_finite(of_columns(found, soft=soft), positions[spool.done :], dataset.named)
        spool.append(found)
    return of_columns(spool.columns(), soft=soft)


def scorer(network: Network, config: Config, device: str, *, overlap: bool, features: bool = False) -> Step:
    """What `score` computes of a batch: `rows` (see scores.as_rows) or `logits`, and the pooled `features`."""

    def step(images: Tensor, roi: PackedRoi) -> dict[str, Tensor]:
        with record_function("forward"), autocast(device, config.precision):
            maps = network.features(images)
        found: dict[str, Tensor] = {}
        if overlap:
            with record_function("explanation"):
                found["rows"] = as_rows(explained(network, maps, roi, config))
        if features or not overlap:
            pooled = maps.mean((2, 3), dtype=torch.float32)
            found |= ({} if overlap else {"logits": network.head(pooled)}) | ({"features": pooled} if features else {})
        return found

    return step


def explained(network: Network, maps: Tensor, roi: PackedRoi, config: Config) -> Acquisition:
    """The Acquisition of feature maps [B, C, h, w]: in closed form if the head is linear, else by its gradient."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.head).eval()
    measure = partial(acquire, threshold=config.threshold, convention=config.explain_convention)
    if (linear := linear_head(head)) is not None:
        return measure(maps, *linear, roi)
    found = explain(head, maps.float())
    return measure(found.features, None, None, roi, alpha=found.alpha, logits=found.logits)


def over(
    dataset: Dataset, positions: np.ndarray, step: Step, device: str, batch: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """step(images, roi) of consecutive batches of the samples at `positions`, as arrays, in their order.

    Args:
        batch: images in one; None: BATCH, or CUDA_BATCH on a GPU.

    While `step` runs, threads read, check and decode the next batches. To CUDA these travel on a stream of their own,
    and the host waits for the results of a batch only when LAG more are under way. Where the device's memory does not
    suffice, the batch is halved once, which is said, and the pass goes on. BenchError where half is too much as well.
    """
    size = batch or (CUDA_BATCH if device == "cuda" else BATCH)
    waiting: deque[tuple[dict[str, Tensor], torch.cuda.Event | None]] = deque()
    for found in _steps(dataset, positions, step, device, size):
        waiting.append(_sent(found))
        if waiting[-1][1] is None or len(waiting) > LAG:
            yield _arrived(*waiting.popleft())
    while waiting:
        yield _arrived(*waiting.popleft())


def _steps(dataset: Dataset, positions: np.ndarray, step: Step, device: str, size: int) -> Iterator[dict[str, Tensor]]:
    height, whole = dataset.shards.manifest.image.size, min(size, len(positions))
    for batch in dataset.shards.batches(positions, size, device):
        start = 0
        while start < len(batch.keys):
            part = slice(start, start + size)
            found = _tried(step, batch.images[part], PackedRoi(batch.roi[part], height))
            if found is not None:
                yield found
                start += size
            elif size >= whole > 1:
                size = _halved(whole, device)
            else:
                raise BenchError(
                    f"a batch of {min(size, whole)} exceeds the memory of {device}: end what else uses it, lower "
                    "--size, or choose a smaller --backbone"
                )


@torch.inference_mode()
def _tried(step: Step, images: Tensor, roi: PackedRoi) -> dict[str, Tensor] | None:
    """What `step` returns; None where the device's memory does not suffice."""
    try:
        return step(images, roi)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _halved(size: int, device: str) -> int:
    console.print(f"a batch of {size} exceeds the memory of {device}: going on with batches of {size // 2}")
    if device == "cuda":
        torch.cuda.empty_cache()
    return size // 2


def _sent(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """`found` on the host; from CUDA on its way there, with the event of its arrival."""
    if not next(iter(found.values())).is_cuda:
        return {name: tensor.cpu() for name, tensor in found.items()}, None
    there = {name: torch.empty_like(tensor, device="cpu", pin_memory=True) for name, tensor in found.items()}
    for name, tensor in found.items():
        there[name].copy_(tensor, non_blocking=True)
    return there, torch.cuda.current_stream().record_event()


def _arrived(there: dict[str, Tensor], event: torch.cuda.Event | None) -> dict[str, np.ndarray]:
    if event is not None:
        event.synchronize()
    return {name: tensor.numpy() for name, tensor in there.items()}


def _identity(network: Network, dataset: Dataset, positions: np.ndarray, config: Config, device: str, what: str) -> str:
    """Name of what these arguments give, to the bit."""
    return config.identity(
        manifest=dataset.shards.manifest.sha256, weights=digest_of(network.state_dict()), device=device,
        positions=hashlib.sha256(np.ascontiguousarray(positions, np.int64).data).hexdigest(), what=what,
    )  # fmt: skip

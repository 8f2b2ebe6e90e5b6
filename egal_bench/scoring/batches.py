"""Batches through a step on the device, results back on the host in order, without idle waiting on either side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from egal_bench.console import console
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.models.devices import batch_of, device_kind, out_of_memory
from egal_kernels import PackedRoi

LAG = 2  # the host waits for the results of a batch only when this many more batches are under way

Step = Callable[[Tensor, PackedRoi], dict[str, Tensor]]  # it maps images and ROIs of B samples to tensors of B rows


def steps_over(
    dataset: Dataset, positions: np.ndarray, step: Step, device: str, batch: int | None = None,
    roi_of: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """Yield step(images, roi) of consecutive batches of the samples at `positions`, as arrays, in their order.

    While `step` runs, threads read, check and decode the next batches. To CUDA these travel on a stream of their own,
    and the host waits for the results of a batch only when LAG more batches are under way. Where the memory of the
    device does not suffice, the batch is halved once, which a message says, and the pass continues.

    Args:
        batch: images per batch; None: see `batch_of`.
        roi_of: int64 [N], the positions whose ROIs `step` gets in place of the samples' own; None: their own. Every
            such sample is read as well, since the digest that is checked covers image and ROI together.

    Raises:
        BenchError: half a batch exceeds the memory as well.
    """
    size = batch or batch_of(device)
    pending: deque[tuple[dict[str, Tensor], torch.cuda.Event | None]] = deque()
    for results in _steps(dataset, positions, roi_of, step, device, size):
        pending.append(_sent(results))
        if pending[-1][1] is None or len(pending) > LAG:
            yield _arrived(*pending.popleft())
    while pending:
        yield _arrived(*pending.popleft())


def _steps(
    dataset: Dataset, positions: np.ndarray, roi_of: np.ndarray | None, step: Step, device: str, size: int
) -> Iterator[dict[str, Tensor]]:
    height, full_batch = dataset.shards.manifest.image.size, min(size, len(positions))
    for images, roi in _images_and_rois(dataset, positions, roi_of, device, size):
        start = 0
        while start < len(images):
            part = slice(start, start + size)
            results = _tried(step, images[part], PackedRoi(roi[part], height))
            if results is not None:
                yield results
                start += size
            elif size >= full_batch > 1:
                size = _halved(full_batch, device)
            else:
                raise BenchError(
                    f"a batch of {min(size, full_batch)} exceeds the memory of {device}: end what else uses it, lower "
                    "--size, or choose a smaller --backbone"
                )


def _images_and_rois(
    dataset: Dataset, positions: np.ndarray, roi_of: np.ndarray | None, device: str, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images of the samples at `positions` and the ROIs of those at `roi_of`, batch by batch."""
    batches = dataset.shards.batches(positions, size, device)
    if roi_of is None:
        yield from ((batch.images, batch.roi) for batch in batches)
    else:
        others = dataset.shards.batches(roi_of, size, device)
        yield from ((batch.images, other.roi) for batch, other in zip(batches, others, strict=True))


@torch.inference_mode()
def _tried(step: Step, images: Tensor, roi: PackedRoi) -> dict[str, Tensor] | None:
    """Return what `step` returns, or None where the memory of the device does not suffice."""
    try:
        return step(images, roi)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _halved(size: int, device: str) -> int:
    console.print(f"a batch of {size} exceeds the memory of {device}: continuing with batches of {size // 2}")
    if device_kind(device) == "cuda":
        torch.cuda.empty_cache()
    return size // 2


def _sent(results: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """Return `results` on the host, or on their way from CUDA to the host with the event of their arrival."""
    if not next(iter(results.values())).is_cuda:
        return {name: tensor.cpu() for name, tensor in results.items()}, None
    copies = {name: torch.empty_like(tensor, device="cpu", pin_memory=True) for name, tensor in results.items()}
    for name, tensor in results.items():
        copies[name].copy_(tensor, non_blocking=True)
    # the event belongs to the device of the results, which need not be the current one
    return copies, torch.cuda.current_stream(next(iter(results.values())).device).record_event()


def _arrived(copies: dict[str, Tensor], event: torch.cuda.Event | None) -> dict[str, np.ndarray]:
    if event is not None:
        event.synchronize()
    return {name: tensor.numpy() for name, tensor in copies.items()}

"""One pass of a network over samples: shards → batches → trunk → `acquire` → a few numbers per sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.models.heads import Head, LinearHead
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_bench.models.weights import digest_of
from egal_bench.scoring.batches import Step, steps_over
from egal_bench.scoring.scores import Scores, as_rows, check_finite, scores_of
from egal_bench.scoring.spool import Spool
from egal_bench.tables.locks import locked
from egal_kernels import Acquisition, PackedRoi, acquire

# the fields of Config that decide the numbers of a pass, besides the weights of the network
DECISIVE = ("size", "threshold", "explain_convention", "precision", "compile", "threads")


def score(
    network: Network, dataset: Dataset, positions: np.ndarray, config: Config, device: str, *,
    needs: Collection[str], roi_of: np.ndarray | None = None, folder: Path | None = None, batch: int | None = None,
) -> Scores:  # fmt: skip
    """Return the Scores of the samples at `positions`, by a network in evaluation mode.

    Memory does not grow with the images. Rows go to `folder` at once, filed under everything that decides them, the
    network's weights included: a pass that was interrupted, or is asked for again, computes only what is missing.

    Args:
        network: on `device`; the copy of a trained network that `inference_network` returns is the fastest.
        dataset: the shard set.
        positions: int64 [N], positions in the shard set.
        config: gives the threshold, the convention, the kind of Dice and the precision.
        device: where the network lies.
        needs: "roi" for the overlap of Grad-CAM and ROI, "features" for the pooled features, memory-mapped.
        roi_of: int64 [N], the positions whose ROIs take the place of the samples' own; None: their own.
        folder: where the rows are stored; None: a temporary folder.
        batch: images per batch; None: see `steps_over`.

    Raises:
        BenchError: the numbers of a sample, which the message names, are not finite; half a batch exceeds the memory;
            the disk is full.
        ShardError: a shard is damaged or unreadable.
    """
    soft = config.overlap == "soft"
    step = scorer(network, config, device, needs=needs)
    with ExitStack() as lock:
        if folder is not None:
            folder = folder / _identity(network, dataset, positions, config, device, needs, roi_of)
            # a worker may outlive its killed comparison for a while, and write beside the worker that continues
            lock.enter_context(locked(folder.parent, folder.name))
        spool = Spool(len(positions), folder, "scores")
        missing_rois = None if roi_of is None else roi_of[spool.done :]
        for rows in steps_over(dataset, positions[spool.done :], step, device, batch, missing_rois):
            check_finite(scores_of(rows, soft=soft), positions[spool.done :], dataset.named)
            spool.append(rows)
    return scores_of(spool.columns(), soft=soft)


def scorer(network: Network, config: Config, device: str, *, needs: Collection[str]) -> Step:
    """Return the step that `score` takes per batch: `rows` (see `as_rows`) or `logits`, and `features` if needed."""

    def step(images: Tensor, roi: PackedRoi) -> dict[str, Tensor]:
        with record_function("forward"), autocast(device, config.precision):
            maps = network.features(images)
        columns: dict[str, Tensor] = {}
        if "roi" in needs:
            with record_function("explanation"):
                columns["rows"] = as_rows(explained(network, maps, roi, config))
        if "features" in needs or "roi" not in needs:
            pooled = maps.mean((2, 3), dtype=torch.float32)
            if "roi" not in needs:
                columns["logits"] = network.head.logits(pooled)
            if "features" in needs:
                columns["features"] = pooled
        return columns

    return step


def explained(network: Network, maps: Tensor, roi: PackedRoi, config: Config) -> Acquisition:
    """Return the Acquisition of feature maps [B, C, h, w], explained by the network's head for the predicted class."""
    return explained_by(network.head, maps, roi, config)


def explained_by(head: Head, maps: Tensor, roi: PackedRoi, config: Config) -> Acquisition:
    """Return the Acquisition of feature maps [B, C, h, w], explained by `head` for the predicted class."""
    measure = partial(acquire, threshold=config.threshold, convention=config.explain_convention)
    if isinstance(head, LinearHead):
        return measure(maps, head.weight, head.bias, roi)
    pooled = maps.mean((2, 3), dtype=torch.float32)
    logits = head.logits(pooled)
    alpha = head.alpha(pooled, logits.argmax(1)) / (maps.shape[2] * maps.shape[3])
    return measure(maps, None, None, roi, alpha=alpha, logits=logits)


def _identity(
    network: Network, dataset: Dataset, positions: np.ndarray, config: Config, device: str, needs: Collection[str],
    roi_of: np.ndarray | None,
) -> str:  # fmt: skip
    """Return a name that changes with everything that decides the numbers of these arguments."""
    decisive = config.model_dump(mode="json", include=set(DECISIVE)) | {
        "data": dataset.shards.manifest.sha256, "weights": digest_of(network.state_dict()), "device": device,
        "positions": _positions_digest(positions), "needs": sorted(needs),
    }  # fmt: skip
    if roi_of is not None:
        decisive["roi_of"] = _positions_digest(roi_of)
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _positions_digest(positions: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(positions, np.int64).data).hexdigest()

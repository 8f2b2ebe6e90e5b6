"""What a pass over samples leaves of each: a few numbers, whatever the size of its image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

from egal_bench.errors import BenchError
from egal_bench.strategies import Overlap

if TYPE_CHECKING:
    from egal_kernels import Acquisition


@dataclass(frozen=True)
class Scores:
    """logits: float [N, K]. entropy: float [N], nats. overlap: with the ROIs; None where they were not looked at."""

    logits: np.ndarray
    entropy: np.ndarray
    overlap: Overlap | None = None


def of_logits(logits: np.ndarray, keys: np.ndarray) -> Scores:
    """Scores without overlap of logits [N, K]. Raises BenchError naming the first of `keys` that is not finite."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    entropy = -(np.exp(log_p) * np.where(np.isneginf(log_p), 0.0, log_p)).sum(axis=1)
    return _finite(Scores(logits, entropy), keys)


def of_acquisitions(outs: Iterable[Acquisition], keys: np.ndarray, *, soft: bool) -> Scores:
    """Scores of consecutive batches `outs`, with the soft or thresholded Dice. Raises BenchError as `of_logits`."""
    names = ("logits", "entropy", "intersection", "cam_area", "roi_area")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "dice")}
    for out in outs:
        for name in names:
            columns[name].append(getattr(out, name).cpu().numpy())
        columns["dice"].append((out.soft_dice() if soft else out.dice()).cpu().numpy())
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    logits, entropy = whole.pop("logits"), whole.pop("entropy")
    return _finite(Scores(logits, entropy, Overlap(**whole)), keys)


def _finite(scores: Scores, keys: np.ndarray) -> Scores:
    bad = np.flatnonzero(~np.isfinite(scores.entropy))
    if len(bad):
        raise BenchError(
            f"sample {str(keys[bad[0]])!r}: the network's output is NaN or infinite ({len(bad)} such samples); "
            "look at the image, or lower --learning-rate"
        )
    return scores

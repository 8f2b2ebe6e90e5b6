"""What a pass over samples leaves of each: a few numbers, whatever the size of its image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

from egal_bench.errors import BenchError
from egal_bench.strategies import Overlap

if TYPE_CHECKING:
    from torch import Tensor

    from egal_kernels import Acquisition

FLOATS = ("entropy", "soft_intersection", "soft_area")  # of an Acquisition; then its counts
COUNTS = ("predicted", "intersection", "cam_area", "roi_area")


@dataclass(frozen=True)
class Scores:
    """logits: float [N, K]. entropy: float [N], nats. overlap: with the ROIs; None where they were not looked at.

    features: float32 [N, C], pooled; None where nobody asked for them.
    """

    logits: np.ndarray
    entropy: np.ndarray
    overlap: Overlap | None = None
    features: np.ndarray | None = None


def as_rows(out: Acquisition) -> Tensor:
    """The numbers of B samples in one tensor, int32 [B, 7 + K], floats by their bits: one copy off the device."""
    import torch

    floats = torch.stack([getattr(out, name) for name in FLOATS], 1).view(torch.int32)
    counts = torch.stack([getattr(out, name).int() for name in COUNTS], 1)
    return torch.cat([floats, counts, out.logits.view(torch.int32)], 1)


def of_columns(columns: Mapping[str, np.ndarray], *, soft: bool) -> Scores:
    """Scores from `rows` (see `as_rows`), with the soft or thresholded Dice, or from `logits` alone, float [N, K]."""
    features = columns.get("features")
    if "rows" not in columns:
        logits = np.array(columns["logits"])
        log_p = log_softmax(logits.astype(np.float64), axis=1)
        entropy = -(np.exp(log_p) * np.where(np.isneginf(log_p), 0.0, log_p)).sum(axis=1)
        return Scores(logits, entropy, features=features)
    out = _acquisition(np.array(columns["rows"]))
    dice = (out.soft_dice() if soft else out.dice()).numpy()
    overlap = Overlap(out.intersection.numpy(), out.cam_area.numpy(), out.roi_area.numpy(), dice)
    return Scores(out.logits.numpy(), out.entropy.numpy(), overlap, features)


def check_finite(scores: Scores, positions: np.ndarray, name: Callable[[int], str]) -> None:
    """Raise BenchError if the logits of a sample are not finite; `name` is what to call that at a position."""
    bad = np.flatnonzero(~np.isfinite(scores.entropy))
    if len(bad):
        which = name(int(positions[bad[0]]))
        raise BenchError(
            f"{which}: the network's output is NaN or infinite; look at the image, or lower --learning-rate"
        )


def _acquisition(rows: np.ndarray) -> Acquisition:
    """The Acquisition that `as_rows` made `rows` of."""
    import torch

    from egal_kernels import Acquisition

    whole = torch.from_numpy(rows)
    floats, counts, logits = whole.tensor_split([len(FLOATS), len(FLOATS) + len(COUNTS)], 1)
    fields = dict(zip(FLOATS, floats.view(torch.float32).unbind(1), strict=True))
    fields |= dict(zip(COUNTS, counts.unbind(1), strict=True))
    return Acquisition(**fields | {"predicted": fields["predicted"].long(), "logits": logits.view(torch.float32)})

"""What a pass over samples keeps of each: a few numbers per sample, whatever the size of its image."""

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

FLOATS = ("entropy", "soft_intersection", "soft_area")  # fields of an Acquisition, in the order of the columns
COUNTS = ("predicted", "intersection", "cam_area", "roi_area")


@dataclass(frozen=True, eq=False)
class Scores:
    """The network's output for N samples.

    Attributes:
        logits: float [N, K].
        entropy: float [N], nats.
        overlap: overlap of the Grad-CAM with the ROI; None where the ROIs were not looked at.
        features: float32 [N, C], pooled; None where they were not asked for.
    """

    logits: np.ndarray
    entropy: np.ndarray
    overlap: Overlap | None = None
    features: np.ndarray | None = None


def as_rows(acquisition: Acquisition) -> Tensor:
    """Return the numbers of B samples as one tensor, int32 [B, 7 + K], so that one copy takes them off the device.

    Floats are stored by their bits.
    """
    import torch

    floats = torch.stack([getattr(acquisition, name) for name in FLOATS], 1).view(torch.int32)
    counts = torch.stack([getattr(acquisition, name).int() for name in COUNTS], 1)
    return torch.cat([floats, counts, acquisition.logits.view(torch.int32)], 1)


def scores_of(columns: Mapping[str, np.ndarray], *, soft: bool) -> Scores:
    """Return the Scores of the arrays that a pass has left.

    Args:
        columns: either `rows` (see `as_rows`) or `logits`, float [N, K]; and `features` where they were asked for.
        soft: whether Dice is the soft one instead of that of the thresholded Grad-CAM.
    """
    features = columns.get("features")
    if "rows" not in columns:
        logits = np.array(columns["logits"])
        log_p = log_softmax(logits.astype(np.float64), axis=1)
        entropy = -(np.exp(log_p) * np.where(np.isneginf(log_p), 0.0, log_p)).sum(axis=1)
        return Scores(logits, entropy, features=features)
    acquisition = _acquisition(np.array(columns["rows"]))
    dice = (acquisition.soft_dice() if soft else acquisition.dice()).numpy()
    areas = (acquisition.intersection, acquisition.cam_area, acquisition.roi_area)
    intersection, cam_area, roi_area = (area.numpy() for area in areas)
    overlap = Overlap(intersection, cam_area, roi_area, dice)
    return Scores(acquisition.logits.numpy(), acquisition.entropy.numpy(), overlap, features)


def check_finite(scores: Scores, positions: np.ndarray, describe: Callable[[int], str]) -> None:
    """Raise BenchError if the logits of a sample are not finite; `describe` names the sample at a position."""
    bad = np.flatnonzero(~np.isfinite(scores.entropy))
    if len(bad):
        raise BenchError(
            f"{describe(int(positions[bad[0]]))}: the network's output is NaN or infinite; look at the image, "
            "or lower --learning-rate"
        )


def _acquisition(rows: np.ndarray) -> Acquisition:
    """Return the Acquisition from which `as_rows` made `rows`."""
    import torch

    from egal_kernels import Acquisition

    floats, counts, logits = torch.from_numpy(rows).tensor_split([len(FLOATS), len(FLOATS) + len(COUNTS)], 1)
    fields = dict(zip(FLOATS, floats.view(torch.float32).unbind(1), strict=True))
    fields |= dict(zip(COUNTS, counts.unbind(1), strict=True))
    return Acquisition(**fields | {"predicted": fields["predicted"].long(), "logits": logits.view(torch.float32)})

"""EG-AL without its leak: the ROI of a pool sample is predicted from the ROIs of the labelled samples alone.

EG-AL (arXiv 2602.13308) reads the expert's ROI of every pool sample before it asks for a label, and no real study has
those. Here the ROI is predicted per cell of the feature map by ridge regression; see `roi_prediction`. D is 1 − the
soft Dice of the predicted class's Grad-CAM and the predicted ROI, both at the resolution of the feature map.

Cost: two passes over the feature maps of the labelled set and one over those of the pool (in the finetune regime a
second forward pass of the network), C³ operations for C channels. Access: maps, labelled-roi.
"""

from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from egal_bench.parameters import EmptyRoi, Lambda, Scale
from egal_bench.statistics.folds import folds_of
from egal_bench.strategies.pool import Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import strategy
from egal_bench.strategies.roi_prediction import RoiModel, fit_roi_model
from egal_bench.strategies.terms import fill_empty, scaled


@strategy("egal-predicted", needs={"labelled-roi", "maps"}, groups={"egal"})
def egal_predicted(
    pool: Pool, *, lambda_: Lambda = 1.0, empty_roi: EmptyRoi = "mean", normalise: Scale = "raw"
) -> Query:
    """EG-AL with ROIs predicted from the labelled ones: H + lambda*D without reading an ROI of the pool."""
    misalignment = predicted_misalignment(pool)
    term = scaled(fill_empty(misalignment, empty_roi), normalise)
    query = pool.rank(scaled(pool.entropy, normalise) + lambda_ * term)
    return Query(query.indices, query.scores, terms={"predicted_misalignment": misalignment})


def predicted_misalignment(pool: Pool) -> np.ndarray:
    """Return D against the predicted ROIs, float64 [N]; NaN where none is predicted, as without labelled ROIs."""
    with_roi = np.any(pool.labelled_roi, axis=(1, 2))
    if not with_roi.any():
        return np.full(len(pool), np.nan)
    with threadpool_limits(1):  # since sums depend on the number of threads in the last digit
        model = _roi_model(pool, with_roi)
        return np.concatenate([1.0 - soft_dice(batch.class_maps, model.predict(batch.maps)) for batch in pool.maps])


def soft_dice(class_maps: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return 2·Σ CAM·ROI / (Σ CAM + Σ ROI), float64 [B]; NaN where the ROI is empty.

    Args:
        class_maps: float [B, h, w]; the CAM is its positive part, scaled to a maximum of 1.
        shares: float [B, h, w], the share of each cell inside the ROI.
    """
    cam = np.maximum(class_maps.astype(np.float64), 0.0)
    highest = cam.max(axis=(1, 2), keepdims=True)
    cam = np.divide(cam, highest, out=np.zeros_like(cam), where=highest > 0)
    area = shares.sum(axis=(1, 2))
    dice = 2.0 * (cam * shares).sum(axis=(1, 2)) / np.where(area > 0, area + cam.sum(axis=(1, 2)), 1.0)
    return np.where(area > 0, dice, np.nan)


def _roi_model(pool: Pool, with_roi: np.ndarray) -> RoiModel:
    """Return the model of the labelled samples that have an ROI, whose rows `with_roi`, bool [L], marks."""
    folds = folds_of(pool.labelled_labels[with_roi], pool.labelled_groups[with_roi])
    return fit_roi_model(_labelled_maps(pool, with_roi), pool.labelled_roi[with_roi], folds)


def _labelled_maps(pool: Pool, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the feature maps, float32 [B, C, h, w], of the labelled samples that `chosen`, bool [L], marks."""
    start = 0
    for batch in pool.labelled_maps:
        yield batch.maps[chosen[start : start + len(batch.maps)]]
        start += len(batch.maps)

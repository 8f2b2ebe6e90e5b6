"""Rows of the table `pool`: what a query could have bought, for the report alone.

They are collected after the purchase. They read ROIs that the strategy need not have looked at, so they count as no
masks, and nothing of the run depends on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from egal_bench.dataset import Dataset
from egal_bench.learners.learner import Learner
from egal_bench.runs.purchase import Purchase

SAMPLES = 1000  # random samples of the pool per recorded query; the bought ones come in addition
CHUNK = 256  # samples whose distances to all labelled ones are in memory at a time


def is_recorded(round_: int) -> bool:
    """Return whether the query for this round has rows: 1, 2, 4, 8, …, whatever the number of rounds."""
    return round_ > 0 and round_ & (round_ - 1) == 0


def pool_rows(
    dataset: Dataset, learner: Learner, purchase: Purchase, round_: int, tie_order: np.ndarray
) -> list[dict[str, Any]]:
    """Return the rows of the query that has just made `purchase` for round `round_`.

    Args:
        dataset: gives the keys.
        learner: scores the samples with the model that the query has used.
        purchase: what was bought, and from which pool.
        round_: number of the query.
        tie_order: int [all samples], random numbers, the same for every strategy; the samples with the smallest ones
            are recorded.
    """
    unlabelled = purchase.unlabelled
    bought = np.isin(unlabelled, purchase.positions)
    recorded = bought.copy()
    recorded[np.argsort(tie_order[unlabelled])[:SAMPLES]] = True
    indices = np.flatnonzero(recorded)
    positions = unlabelled[indices]
    scores = learner.score(positions, {"roi", "features"})
    labelled = learner.score(purchase.labelled, {"features"}).features
    assert scores.overlap is not None
    assert scores.features is not None
    assert labelled is not None
    predicted = purchase.terms.get("predicted_misalignment", np.full(len(unlabelled), np.nan))
    columns = {
        "key": dataset.keys[positions].astype(str), "bought": bought[indices], "entropy": scores.entropy,
        "misalignment": scores.overlap.misalignment, "predicted_misalignment": predicted[indices],
        "roi_area": scores.overlap.roi_area, "distance": nearest_distance(scores.features, labelled),
    }  # fmt: skip
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"round": round_} | dict(zip(columns, row, strict=True)) for row in values]


def nearest_distance(features: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each sample to the nearest labelled one, float64 [N].

    Args:
        features: float [N, C].
        labelled: float [L, C], with L at least 1.
    """
    parts = [cdist(features[start : start + CHUNK], labelled).min(axis=1) for start in range(0, len(features), CHUNK)]
    return np.concatenate(parts)

"""Curves over the budget."""

from __future__ import annotations

import numpy as np


def aubc(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the area under the budget curve of each seed, [S]: the mean of `values` over the labels really spent.

    The trapezoid rule over `labels` is divided by their span; a single round gives its own value.

    Args:
        labels: [R], increasing, the labels of each round.
        values: [S, R], one curve per seed.
    """
    if len(labels) == 1:
        return values[:, 0]
    return np.trapezoid(values, labels, axis=1) / (labels[-1] - labels[0])

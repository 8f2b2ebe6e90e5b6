"""Rank correlations of single runs, and their mean over seeds."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from egal_bench.statistics.estimates import mean_interval

LARGEST = 1 - 1e-12  # larger correlations would be infinite on Fisher's scale


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's correlation of two arrays [N], over the samples at which both are finite.

    NaN where fewer than three such samples are left, or one of the arrays does not vary over them.
    """
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return np.nan
    return float(spearmanr(x[known], y[known]).statistic)


def mean_correlation(correlations: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of correlations over seeds, [S], and the ends of its interval.

    The mean is taken on Fisher's scale, and the interval is Student's on that scale; NaN is left out. The ends are NaN
    with fewer than two values, and everything is NaN without one.
    """
    z = np.arctanh(np.clip(correlations[np.isfinite(correlations)], -LARGEST, LARGEST))
    if not len(z):
        return np.nan, np.nan, np.nan
    low, high = mean_interval(z, level)
    return float(np.tanh(z.mean())), float(np.tanh(low)), float(np.tanh(high))

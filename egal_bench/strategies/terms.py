"""The terms that strategies add up: the value of a sample without ROI, and common scales."""

from __future__ import annotations

from math import fsum

import numpy as np

from egal_bench.parameters import EmptyRoi, Scale


def fill_empty(misalignment: np.ndarray, policy: EmptyRoi) -> np.ndarray:
    """Return a copy of D, float [N], with a value for the samples without ROI, whose D is NaN.

    Args:
        policy: `zero`; the `mean` of the pool's known values; or `exclude`, which leaves NaN, so that these samples
            are ranked last. Where no sample has an ROI, D is 0 for all of them.
    """
    filled = misalignment.copy()
    empty = np.isnan(filled)
    if policy == "zero" or empty.all():
        filled[empty] = 0.0
    elif policy == "mean":
        filled[empty] = mean(filled[~empty])
    return filled


def mean(values: np.ndarray) -> float:
    """Return the mean of `values`, float [N], rounded once, so that it does not depend on their order."""
    return fsum(values) / len(values)


def scaled(term: np.ndarray, scale: Scale) -> np.ndarray:
    """Return `term`, float [N], `raw`, as `minmax` to 0..1, or as mid-`rank` to 0..1; NaN stays NaN."""
    known = term[~np.isnan(term)]
    if scale == "raw" or not len(known):
        return term
    if scale == "rank":
        from scipy.stats import rankdata

        return (rankdata(term, nan_policy="omit") - 0.5) / len(known)
    span = known.max() - known.min()
    return (term - known.min()) / span if span > 0 else term * 0.0

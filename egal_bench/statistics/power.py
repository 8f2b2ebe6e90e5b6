"""What so few seeds and test samples can and cannot show."""

from __future__ import annotations

import math


def standard_error(accuracy: float, size: int) -> float:
    """Return the standard error of an accuracy that was measured on `size` independent test samples (binomial).

    Samples of one patient are not independent, so with several images per patient it is a lower bound.
    """
    return math.sqrt(accuracy * (1 - accuracy) / size)


def smallest_p(seeds: int, comparisons: int = 1) -> float:
    """Return the smallest two-sided p of an exact paired test with n = `seeds` pairs: 2/2^n, at most 1.

    Holm's correction multiplies the smallest of several p by the number of comparisons.
    """
    return min(1.0, comparisons * 2.0 / 2**seeds)


def exact_floor(comparisons: int, alpha: float = 0.05) -> int:
    """Return the smallest number of seeds with which an exact two-sided paired test can reject under Holm."""
    seeds = 1
    while smallest_p(seeds, comparisons) >= alpha:
        seeds += 1
    return seeds


def power_warning(seeds: int, comparisons: int) -> str | None:
    """Return a sentence where `seeds` are too few for an exact paired test to reach p < .05, else None.

    Args:
        seeds: paired with those of the baseline.
        comparisons: number of strategies that are compared with the baseline.
    """
    if comparisons < 1 or seeds >= exact_floor(comparisons):
        return None
    tests = "exact paired test" if comparisons == 1 else f"exact paired tests of {comparisons} comparisons, Holm"
    return (
        f"{seeds} seed{'s' * (seeds != 1)} cannot show a significant difference ({tests}: p is at least "
        f"{smallest_p(seeds, comparisons):.3g}); {exact_floor(comparisons)} seeds or more can"
    )

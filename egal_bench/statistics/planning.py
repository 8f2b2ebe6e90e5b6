"""The number of seeds that a decision would need, from statsmodels' power of the t test: approximate throughout."""

from __future__ import annotations

import numpy as np
from statsmodels.stats.power import TTestPower

from egal_bench.statistics.paired import NOISE
from egal_bench.statistics.power import exact_floor

POWER = 0.8
MOST_SEEDS = 1000
_SEEDS = np.unique(np.concatenate([np.arange(2, 101), np.geomspace(100, MOST_SEEDS, 48).round()]).astype(int))
_LARGEST_EFFECT = 10.0  # the power is 1 far below it, and the noncentral t of larger effects is not finite


def seeds_needed(mean: float, sd: float, margin: float, *, comparisons: int = 1, alpha: float = 0.05) -> float:
    """Return about how many seeds decide with a chance of 80 %, if mean and sd of the differences stay as they are.

    Args:
        mean: mean paired difference.
        sd: sample standard deviation of the differences.
        margin: differences below it do not matter; in the same units.
        comparisons: number of comparisons of the family; alpha is divided by it, which is Holm's hardest step.
        alpha: level of the family.
    The smaller of what a significant difference and what equivalence would need; inf above MOST_SEEDS; NaN where sd
    is unknown. Above 100 it is rounded up, by at most 6 %.
    """
    if not np.isfinite(sd):
        return np.nan
    seeds, level = _SEEDS, alpha / comparisons
    differs = _power(abs(mean), sd, seeds, level, "two-sided") * (seeds >= exact_floor(comparisons, alpha))
    same = np.zeros(len(seeds))
    if abs(mean) < margin:
        sides = [_power(distance, sd, seeds, level, "larger") for distance in (margin - mean, margin + mean)]
        same = sides[0] + sides[1] - 1
        if sd <= NOISE:
            same = same * (0.5**seeds <= level)
    enough = np.maximum(differs, same) >= POWER
    return float(seeds[enough.argmax()]) if enough.any() else np.inf


def _power(distance: float, sd: float, seeds: np.ndarray, alpha: float, alternative: str) -> np.ndarray:
    """Return the power of a t test of a mean `distance` from 0, for each number of seeds."""
    if distance == 0:
        return np.full(len(seeds), alpha)
    effect = min(distance / sd, _LARGEST_EFFECT) if sd > NOISE else _LARGEST_EFFECT
    power = TTestPower().power(effect, seeds, alpha, alternative=alternative)
    return np.where(np.isfinite(power), power, 1.0)  # not finite only where it is 1 within rounding

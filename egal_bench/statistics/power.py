"""What so few seeds and test samples can and cannot show."""

from __future__ import annotations

import math

EXACT_TEST_SEEDS = 6  # the smallest n with 2/2**n < .05


def standard_error(accuracy: float, size: int) -> float:
    """Return the standard error of an accuracy that was measured on `size` independent test samples (binomial).

    Samples of one patient are not independent, so with several images per patient it is a lower bound.
    """
    return math.sqrt(accuracy * (1 - accuracy) / size)


def wilcoxon_floor(seeds: int) -> float:
    """Return the smallest two-sided p of an exact paired Wilcoxon signed-rank test with n = `seeds` pairs: 2/2^n."""
    return min(1.0, 2.0 / 2**seeds)


def power_warning(seeds: int) -> str | None:
    """Return a sentence where `seeds` are too few for an exact paired test to reach p < .05, else None."""
    if seeds >= EXACT_TEST_SEEDS:
        return None
    return (
        f"{seeds} seed{'s' * (seeds != 1)}: an exact paired Wilcoxon test cannot go below "
        f"p = {wilcoxon_floor(seeds):.3g}, so no difference here can be significant at .05; "
        f"{EXACT_TEST_SEEDS} seeds or more can"
    )

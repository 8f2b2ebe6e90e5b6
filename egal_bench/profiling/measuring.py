"""Contenders timed in turns: a busy machine slows all of them alike, so ratios hold where single times do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np

LEVEL = 0.95  # level of the confidence intervals
DRAWS = 2000  # bootstrap samples
WARM_SECONDS = 0.02


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, rng: np.random.Generator,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the seconds, float [rounds], of each contender; in each round each runs once, in a newly drawn order.

    Each contender runs once before the first round, so that whatever it compiles is compiled. Directly before each
    timed run it runs untimed for WARM_SECONDS, because what the others left in the caches, and their threads that
    still spin, would count against it. A contender that takes longer than that is not warmed.

    Args:
        contenders: name → one run.
        rounds: number of timed runs of each.
        rng: draws the orders.
        advance: called with 1 after each timed run.
    """
    names = list(contenders)
    last = {name: _seconds_of(contenders[name]) for name in names}
    seconds = {name: np.empty(rounds) for name in names}
    for round_ in range(rounds):
        for name in rng.permutation(names).tolist():
            stop = perf_counter() + WARM_SECONDS
            while perf_counter() + last[name] < stop:
                last[name] = _seconds_of(contenders[name])
            last[name] = seconds[name][round_] = _seconds_of(contenders[name])
            advance(1)
    return seconds


def paired_ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return the median of a / b over rounds, and the lower and upper end of its 95 % confidence interval.

    The interval is that of the percentile bootstrap over rounds (Efron 1979).

    Args:
        a: float [rounds].
        b: float [rounds], of the same rounds.
    """
    ratios = np.asarray(a) / np.asarray(b)
    return float(np.median(ratios)), *_interval(_resampled_medians(ratios, np.random.default_rng(0)))


def ratio_of_medians(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return median(a) / median(b), and the lower and upper end of its 95 % confidence interval.

    The percentile bootstrap resamples `a` and `b` independently. The interval does not cover what makes all values of
    one sitting differ from those of another, such as other programs on the machine.

    Args:
        a: float, of one sitting.
        b: float, of another.
    """
    rng = np.random.default_rng(0)
    ratios = _resampled_medians(np.asarray(a), rng) / _resampled_medians(np.asarray(b), rng)
    return float(np.median(a) / np.median(b)), *_interval(ratios)


def _seconds_of(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _resampled_medians(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the medians of DRAWS bootstrap samples of `values`."""
    return np.median(values[rng.integers(0, len(values), (DRAWS, len(values)))], axis=1)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

"""Contenders timed in turns: a busy machine slows all of them alike, so ratios hold where single times do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np

LEVEL = 0.95  # of the confidence intervals
DRAWS = 2000  # bootstrap samples
WARM = 0.02  # seconds


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, rng: np.random.Generator,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Seconds [rounds] of each contender: in each round each runs once, in an order drawn anew.

    Each runs once before the first round, which compiles what is to be compiled. Directly before a timed run it runs
    untimed as often as WARM allows, since what the others left in the caches, and their threads that still spin, would
    count against it; that changes nothing for one that takes longer. `advance(1)` is called after each timed run.
    """
    names = list(contenders)
    last = {name: _timed(contenders[name]) for name in names}
    seconds = {name: np.empty(rounds) for name in names}
    for round_ in range(rounds):
        for name in rng.permutation(names).tolist():
            stop = perf_counter() + WARM
            while perf_counter() + last[name] < stop:
                last[name] = _timed(contenders[name])
            last[name] = seconds[name][round_] = _timed(contenders[name])
            advance(1)
    return seconds


def paired_ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Median of a / b over rounds, and the ends of its confidence interval; a, b: float [rounds], of the same rounds.

    The interval is the percentile bootstrap's over rounds (Efron 1979).
    """
    ratios = np.asarray(a) / np.asarray(b)
    return float(np.median(ratios)), *_ends(_medians(ratios, np.random.default_rng(0)))


def ratio_of_medians(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Median of a over that of b, and the ends of its confidence interval; a, b: float, of different runs.

    The interval is the percentile bootstrap's, of both. What one run as a whole differs by from another (the
    machine's state, its neighbours) is not in it.
    """
    rng = np.random.default_rng(0)
    ratios = _medians(np.asarray(a), rng) / _medians(np.asarray(b), rng)
    return float(np.median(a) / np.median(b)), *_ends(ratios)


def _timed(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _medians(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of DRAWS bootstrap samples."""
    return np.median(values[rng.integers(0, len(values), (DRAWS, len(values)))], axis=1)


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

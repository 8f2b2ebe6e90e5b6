"""Paired tests, equivalence and Holm's correction: scipy and statsmodels, made safe for few seeds and for ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from egal_bench.errors import unknown
from egal_bench.statistics.paired import NOISE

TESTS = ("sign-flip", "wilcoxon", "t")
EXACT_SEEDS = 14  # up to here all 2^n flips are enumerated
MONTE_CARLO_DRAWS = 9999
_ELEMENTS = 10**7  # numbers that a permutation test holds at a time


def paired_p(differences: np.ndarray, test: str = "sign-flip", rng: np.random.Generator | None = None) -> np.ndarray:
    """Return the two-sided p of "the differences are symmetric about 0", one per column, float [M].

    Args:
        differences: float [S, M], one row per seed; NaN where a seed is missing.
        test: "sign-flip": permutation test of the mean under all 2^n changes of signs, exact; "wilcoxon": the same of
            the signed ranks, which is the exact signed-rank test with ties, and with zeros as in Pratt 1959;
            "t": Student's paired test.
        rng: needed by the first two above EXACT_SEEDS seeds, where MONTE_CARLO_DRAWS random flips replace all of them
            and p = (b + 1) / (draws + 1).
    Differences without spread have no t; "t" then gives the p of "sign-flip". NaN for fewer than two seeds.
    """
    if test not in TESTS:
        raise unknown("test", test, TESTS)
    if test == "t":
        return _per_column(differences, lambda d: _t(d, rng))
    return _per_column(differences, lambda d: _sign_flip(d, test, rng))


def _per_column(differences: np.ndarray, p_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return p per column, float [M], by calls of `p_of` on all columns [n, columns] that have the same n ≥ 2 seeds."""
    p = np.full(differences.shape[1], np.nan)
    present = np.isfinite(differences)
    counts = present.sum(axis=0)
    for n in np.unique(counts[counts > 1]):
        where = counts == n
        p[where] = p_of(differences.T[where][present.T[where]].reshape(-1, n).T)
    return p


def _t(d: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    spread = np.ptp(d, axis=0) > NOISE
    p = np.empty(d.shape[1])
    p[spread] = stats.ttest_1samp(d[:, spread], 0).pvalue
    if not spread.all():
        p[~spread] = _sign_flip(d[:, ~spread], "sign-flip", rng)
    return p


def _sign_flip(d: np.ndarray, test: str, rng: np.random.Generator | None) -> np.ndarray:
    d = np.where(np.abs(d) > NOISE, d, 0.0)
    if test == "wilcoxon":
        d = np.sign(d) * stats.rankdata(np.abs(d).round(12), axis=0)
    n, columns = d.shape
    exact = n <= EXACT_SEEDS
    if not exact and rng is None:
        raise ValueError(f"a test of {n} seeds draws random flips, so it needs rng")
    result = stats.permutation_test(
        (d,),
        _rounded_mean,
        permutation_type="samples",
        vectorized=True,
        axis=0,
        n_resamples=np.inf if exact else MONTE_CARLO_DRAWS,
        batch=max(1, _ELEMENTS // (n * columns)),
        rng=rng,
    )
    return result.pvalue


def _rounded_mean(d: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean, rounded so that sums which tie are equal whatever the order of their terms."""
    return np.round(d.mean(axis=axis), 12)


def equivalence_p(differences: np.ndarray, margin: float) -> np.ndarray:
    """Return the p of the two one-sided t tests (TOST) of "the mean difference is beyond ±margin", float [M].

    Args:
        differences: float [S, M], one row per seed; NaN where a seed is missing.
        margin: in units of the metric, positive; a mean difference below it does not matter.
    Schuirmann 1987. Differences without spread have no t: p is then 2^−n, the exact one-sided sign-flip p, where
    they lie within the margin, else 1. NaN for fewer than two seeds.
    """
    return _per_column(differences, lambda d: _tost(d, margin))


def _tost(d: np.ndarray, margin: float) -> np.ndarray:
    spread = np.ptp(d, axis=0) > NOISE
    p = np.where(np.abs(d[0]) < margin - NOISE, 0.5 ** len(d), 1.0)
    if spread.any():
        p[spread] = DescrStatsW(d[:, spread]).ttost_mean(-margin, margin)[0]
    return p


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p values of one family, float [M]; a NaN stays NaN and does not count as a test.

    statsmodels' multipletests gives the same, but collects garbage at each call, which costs more than all the rest.
    """
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = np.full(len(p), np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted

"""Ranks across data sets: Friedman's test, Nemenyi's comparison, the critical difference, and rankings under bootstrap.

Demšar 2006, "Statistical comparisons of classifiers over multiple data sets".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from egal_bench.statistics.outcomes import by_seed, direction, split

LEAST_DATASETS = 3
LEAST_STRATEGIES = 3
DRAWS = 1000


@dataclass(frozen=True)
class RankTest:
    """Average ranks over data sets and what they show; `reason` says why a field is NaN, and is "" where none is."""

    ranks: pd.Series  # average rank per strategy, 1 is the best; ties share the mean of their ranks
    datasets: tuple[str, ...]
    left_out: tuple[str, ...]  # strategies that some data set lacks
    statistic: float  # Friedman's chi-square, corrected for ties
    p: float
    nemenyi: pd.DataFrame  # p of every pair of strategies, [k, k]
    critical_difference: float  # average ranks that differ by it or more differ significantly
    alpha: float
    reason: str


@dataclass(frozen=True)
class RankStability:
    """How firm a ranking is when the seeds are drawn anew."""

    ranks: pd.Series  # average rank per strategy on the real seeds
    shares: pd.DataFrame  # share of resamples [strategies, places] that put the strategy at place 1, 2, …
    tau: float  # mean Kendall's τ between the resampled and the real ranking
    tau_low: float  # its 2.5 % quantile
    tau_high: float  # its 97.5 % quantile
    reason: str  # why fields are NaN, "" where none is


def average_ranks(scores: pd.DataFrame, *, alpha: float = 0.05) -> RankTest:
    """Return the ranks of strategies over data sets, Friedman's test and Nemenyi's comparison.

    Args:
        scores: float [data sets, strategies], a higher value is better; as `dataset_scores` returns.
        alpha: level of the critical difference, q(alpha, k, ∞) · √(k(k+1) / 12N), with
            q the quantile of the studentised range.
    Strategies that are NaN in some data set are left out. The tests need three data sets and three strategies.
    """
    complete = scores.dropna(axis="columns")
    ranks = complete.rank(axis="columns", ascending=False).mean()
    n, k = complete.shape
    left_out = tuple(scores.columns.difference(complete.columns, sort=False))
    statistic = p = critical = np.nan
    nemenyi = pd.DataFrame(np.nan, index=complete.columns, columns=complete.columns)
    reason = ""
    if n < LEAST_DATASETS:
        reason = f"{n} data set{'s' * (n != 1)}: rank tests need at least {LEAST_DATASETS}"
    elif k < LEAST_STRATEGIES:
        reason = f"{k} strateg{'y' if k == 1 else 'ies'} on every data set: rank tests need at least {LEAST_STRATEGIES}"
    elif (np.ptp(complete.to_numpy(), axis=1) == 0).all():
        reason = "all strategies are tied on every data set"
    else:
        import scikit_posthocs  # only here, because it imports matplotlib

        statistic, p = map(float, stats.friedmanchisquare(*complete.to_numpy().T))
        nemenyi[:] = scikit_posthocs.posthoc_nemenyi_friedman(complete.to_numpy()).to_numpy()
        critical = float(stats.studentized_range.ppf(1 - alpha, k, np.inf) * np.sqrt(k * (k + 1) / (12 * n)))
    return RankTest(ranks, tuple(scores.index), left_out, statistic, p, nemenyi, critical, alpha, reason)


def cliques(test: RankTest) -> list[tuple[str, ...]]:
    """Return the largest groups of strategies, best first, whose ranks differ by less than the critical difference.

    They are the bars of a critical-difference diagram. A strategy that differs from all others is in no group.
    """
    ranks = test.ranks.sort_values(kind="stable")
    groups: list[tuple[str, ...]] = []
    for start in range(len(ranks)):
        near = tuple(ranks.index[start:][ranks.iloc[start:] - ranks.iloc[start] < test.critical_difference])
        if len(near) > 1 and not (groups and set(near) <= set(groups[-1])):
            groups.append(near)
    return groups


def dataset_scores(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds [data sets, strategies] of one metric and outcome, negated where lower is better.

    Means are rounded to 12 decimals, so that equal ones are tied.
    """
    return pd.DataFrame({dataset: table.mean().round(12) for dataset, table in _tables(outcomes).items()}).T


def rank_stability(outcomes: pd.DataFrame, rng: np.random.Generator, *, draws: int = DRAWS) -> RankStability:
    """Return how the ranking by mean value changes when seeds are resampled within every data set.

    Args:
        outcomes: one metric and outcome of one or several data sets.
        rng: draws the seeds, the same ones for every strategy.
        draws: number of resamples.
    Only strategies that every data set has are ranked, on the seeds that all of them have. With several data sets the
    ranks are averaged over them. Fewer than two strategies or two seeds leave all but `ranks` NaN.
    """
    tables = _tables(outcomes)
    names = [name for name in dict.fromkeys(outcomes["strategy"]) if all(name in table for table in tables.values())]
    values = [table[names].dropna().to_numpy() for table in tables.values()]
    k, seeds = len(names), min((len(v) for v in values), default=0)
    empty = pd.DataFrame(np.nan, index=names, columns=range(1, k + 1))
    ranks = pd.Series(_average([_ranks(v.mean(axis=0)) for v in values]) if seeds else np.nan, index=names)
    if k < 2:
        return RankStability(ranks, empty, np.nan, np.nan, np.nan, "a ranking needs two strategies on every data set")
    if seeds < 2:
        return RankStability(ranks, empty, np.nan, np.nan, np.nan, "a bootstrap needs two seeds of every strategy")
    resampled = _average([_ranks(v[rng.integers(len(v), size=(draws, len(v)))].mean(axis=1)) for v in values])
    places = stats.rankdata(resampled, method="min", axis=1)
    shares = np.stack([(places == place).mean(axis=0) for place in empty.columns], axis=1)
    tau = np.array([stats.kendalltau(ranks, row).statistic for row in resampled])
    tau = tau[np.isfinite(tau)]  # τ of a ranking with only ties is not defined
    if not len(tau):
        return RankStability(ranks, empty.fillna(0) + shares, np.nan, np.nan, np.nan, "all strategies are tied")
    low, high = np.quantile(tau, [0.025, 0.975])
    return RankStability(ranks, empty.fillna(0) + shares, float(tau.mean()), float(low), float(high), "")


def _tables(outcomes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return {data set: values [seeds, strategies]}, with the sign that makes a higher value better."""
    return {
        key["dataset"]: by_seed(cell) * direction(cell["metric"].iloc[0]) for key, cell in split(outcomes, ["dataset"])
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks over the last axis, 1 for the highest value; values that differ by rounding only are tied."""
    return stats.rankdata(-np.round(values, 12), axis=-1)


def _average(ranks: list[np.ndarray]) -> np.ndarray:
    return np.mean(ranks, axis=0)

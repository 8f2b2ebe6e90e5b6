"""The pairwise penalty matrix: how often each strategy beats each other one, budget by budget.

Ash et al. 2020, "Deep batch active learning by diverse, uncertain gradient lower bounds" (BADGE).
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd

from egal_bench.statistics.outcomes import by_seed, direction, split
from egal_bench.statistics.significance import holm, paired_p

COLUMNS = ["dataset", "metric", "winner", "loser", "budgets", "wins", "wins_holm", "penalty", "penalty_holm"]


def penalties(
    curves: pd.DataFrame, *, test: str = "t", alpha: float = 0.05, rng: np.random.Generator | None = None
) -> pd.DataFrame:
    """Return one row per data set, metric and ordered pair of strategies.

    Args:
        curves: with any number of data sets and metrics.
        test: as in `significance.paired_p`; "t" as published, which can reject with five seeds.
        alpha: level of each test.
        rng: needed by the other tests above `significance.EXACT_SEEDS` seeds.
    Columns: `winner`, `loser`. `budgets`: those at which the pair can be tested. `wins`: those at which the winner is
    better with p ≤ alpha; `wins_holm`: with p ≤ alpha after Holm over all pairs and budgets of the data set and
    metric. `penalty`, `penalty_holm`: wins / budgets, NaN without a budget.
    """
    rows = []
    for key, cell in split(curves, ["dataset", "metric"]):
        names = list(dict.fromkeys(cell["strategy"]))
        budgets, wins = _count(_values(cell, names) * direction(key["metric"]), test, alpha, rng)
        for i, j in permutations(range(len(names)), 2):
            n, won = int(budgets[i, j]), wins[:, i, j]
            shares = won / n if n else np.full(2, np.nan)
            rows.append([*key.values(), names[i], names[j], n, *map(int, won), *map(float, shares)])
    return pd.DataFrame(rows, columns=COLUMNS)


def _values(cell: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return the values [S, strategies, budgets] of one data set and metric, NaN where missing."""
    seeds = np.unique(cell["seed"])
    tables = [by_seed(at_budget).reindex(index=seeds, columns=names) for _, at_budget in cell.groupby("labels")]
    return np.stack([table.to_numpy() for table in tables], axis=-1)


def _count(
    values: np.ndarray, test: str, alpha: float, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the budgets tested, int [k, k], and the wins of row over column, plain and Holm, int [2, k, k]."""
    strategies = values.shape[1]
    first, second = np.triu_indices(strategies, 1)
    d = values[:, first] - values[:, second]  # [S, pairs, budgets]
    p = paired_p(d.reshape(len(d), -1), test, rng)
    significant = np.stack([p <= alpha, holm(p) <= alpha]).reshape(2, *d.shape[1:])
    total = np.nansum(d, axis=0)
    budgets, wins = np.zeros((strategies, strategies), int), np.zeros((2, strategies, strategies), int)
    budgets[first, second] = budgets[second, first] = np.isfinite(p).reshape(d.shape[1:]).sum(axis=-1)
    wins[:, first, second] = (significant & (total > 0)).sum(axis=-1)
    wins[:, second, first] = (significant & (total < 0)).sum(axis=-1)
    return budgets, wins


def penalty_matrix(penalties: pd.DataFrame, column: str = "penalty") -> pd.DataFrame:
    """Return the matrix [k, k] of one metric's penalties, summed over data sets: row beats column.

    Args:
        penalties: rows of `penalties` of a single metric.
        column: "penalty" or "penalty_holm".
    The largest entry possible is the number of data sets. The mean of a column is that strategy's penalty: how often
    others beat it, so the lowest is the best. The diagonal is 0; an entry that no data set can fill is NaN.
    """
    names = list(dict.fromkeys(penalties["winner"]))
    matrix = penalties.groupby(["winner", "loser"], sort=False)[column].sum(min_count=1).unstack()
    matrix = matrix.reindex(index=names, columns=names)
    return matrix.mask(np.eye(len(names), dtype=bool), 0.0)

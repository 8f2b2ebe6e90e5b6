"""Paired differences to the baseline: the same seed on both sides, and what is left when it is subtracted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egal_bench.statistics.estimates import mean_interval
from egal_bench.statistics.outcomes import by_seed, cell_columns, direction, split

NOISE = 1e-12  # differences below it are rounding, not results
COLUMNS = ["pairs", "difference", "low", "high", "sd", "won", "tied", "effect", "improvement"]


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Return P(X > Y): the share of all pairs (x, y) in which x is larger, a tie counting half; NaN for empty input.

    The Mann-Whitney statistic divided by its largest value. It compares any run with any other, so it tells how
    often a single new run of X beats a single new run of Y with another seed.
    """
    if not (x.size and y.size):
        return np.nan
    difference = x[:, None] - y
    return float((difference > NOISE).mean() + (np.abs(difference) <= NOISE).mean() / 2)


def differences(table: pd.DataFrame, baseline: str = "random", *, level: float = 0.95) -> pd.DataFrame:
    """Return one row per cell and strategy other than the baseline, joined by seed.

    Args:
        table: curves or outcomes.
        baseline: name of the strategy that is subtracted.
        level: confidence of the interval.
    Columns: those that name the cell, strategy, and
    `pairs`: seeds that both have. `difference`: mean of strategy − baseline, in units of the metric.
    `low`, `high`: Student's interval of that mean (see estimates.py). `sd`: that of the differences.
    `won`, `tied`: seeds in which the strategy is better, or equal. `effect`: difference / sd (Cohen's d of pairs).
    `improvement`: P(strategy better than baseline) over all pairs of runs.
    For nll and ece lower is better, which `won` and `improvement` know; `difference` and `effect` keep their sign.
    NaN where too few pairs or no spread leave a column undefined; every column but `pairs` for no pair.
    """
    columns, rows = cell_columns(table), []
    for names, cell in split(table, columns):
        values = by_seed(cell)
        y = values[baseline].to_numpy() if baseline in values else np.full(len(values), np.nan)
        for strategy in values.columns.drop(baseline, errors="ignore"):
            x = values[strategy].to_numpy()
            both = np.isfinite(x) & np.isfinite(y)
            statistics = _describe(x[both], y[both], direction(names["metric"]), level)
            rows.append(names | {"strategy": strategy} | statistics)
    return pd.DataFrame(rows, columns=[*columns, "strategy", *COLUMNS])


def _describe(x: np.ndarray, y: np.ndarray, sign: int, level: float) -> dict[str, float]:
    """Return the COLUMNS of one cell from the paired values x and y, each [n]."""
    n, d = len(x), x - y
    if not n:
        return dict.fromkeys(COLUMNS, np.nan) | {"pairs": 0}
    low, high = mean_interval(d, level)
    sd = float(d.std(ddof=1)) if n > 1 else np.nan
    return {
        "pairs": n,
        "difference": float(d.mean()),
        "low": float(low),
        "high": float(high),
        "sd": sd,
        "won": int((sign * d > NOISE).sum()),
        "tied": int((np.abs(d) <= NOISE).sum()),
        "effect": float(d.mean() / sd) if sd > NOISE else np.nan,
        "improvement": improvement(sign * x, sign * y),
    }

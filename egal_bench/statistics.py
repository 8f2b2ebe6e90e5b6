"""What the numbers allow one to conclude: pure functions of arrays [S, R], S seeds by R rounds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

EXACT_TEST_SEEDS = 6  # the smallest n with 2/2**n < .05


def aubc(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Area under the budget curve of each seed, [S]: mean height of `values` over the labels really spent.

    Args:
        labels: [R], increasing, the labels of each round. values: [S, R].
    The trapezoid rule over `labels`, divided by their span; a single round is its own value.
    """
    if len(labels) == 1:
        return values[:, 0]
    return np.trapezoid(values, labels, axis=1) / (labels[-1] - labels[0])


def standard_error(accuracy: float, size: int) -> float:
    """Standard error of an accuracy measured on `size` independent test samples (binomial).

    Samples of one patient are not independent: with groups it is a lower bound.
    """
    return math.sqrt(accuracy * (1 - accuracy) / size)


def wilcoxon_floor(seeds: int) -> float:
    """Smallest two-sided p that an exact paired Wilcoxon signed-rank test can reach with `seeds` pairs: 2/2^n."""
    return min(1.0, 2.0 / 2**seeds)


def power_warning(seeds: int) -> str | None:
    """A sentence where `seeds` are too few for an exact paired test to reach p < .05, else None."""
    if seeds >= EXACT_TEST_SEEDS:
        return None
    return (
        f"{seeds} seed{'s' * (seeds != 1)}: an exact paired Wilcoxon test cannot go below "
        f"p = {wilcoxon_floor(seeds):.3g}, so no difference here can be significant at .05; "
        f"{EXACT_TEST_SEEDS} seeds or more can"
    )


def summarise(rounds: pd.DataFrame, baseline: str = "random") -> pd.DataFrame:
    """One row a (dataset, strategy): final metrics, AUBC and the paired difference to `baseline`.

    Args:
        rounds: the `rounds` table, complete: every seed has the same rounds.
    Columns `X` and `X_sd` for X in accuracy, macro_auc, aubc and `gain` (AUBC minus the baseline's of the same
    seed; NaN where the baseline was not run): mean and sample sd over seeds (NaN for one seed). `wins`: seeds
    with gain > 0. `labels`, `masks` (mean), `test_size`, `test_se`: of the last round. Order: as first met.
    """
    rows = []
    for dataset, of_dataset in rounds.groupby("dataset", sort=False):
        areas = {name: _areas(runs) for name, runs in of_dataset.groupby("strategy", sort=False)}
        for name, runs in of_dataset.groupby("strategy", sort=False):
            last = runs[runs["round"] == runs["round"].max()].set_index("seed").sort_index()
            gain = areas[name] - areas[baseline] if baseline in areas else areas[name] * np.nan
            columns = {"accuracy": last.accuracy, "macro_auc": last.macro_auc, "aubc": areas[name], "gain": gain}
            row = {"dataset": dataset, "strategy": name, "seeds": len(last)}
            for column, values in columns.items():
                row |= {column: values.mean(), f"{column}_sd": values.std(ddof=1)}
            size = int(last.test_size.iloc[0])
            rows.append(
                row
                | {"wins": int((gain > 0).sum()), "labels": int(last.labels.max()), "masks": last.masks.mean()}
                | {"test_size": size, "test_se": standard_error(last.accuracy.mean(), size)}
            )
    return pd.DataFrame(rows)


def _areas(runs: pd.DataFrame) -> pd.Series:
    """AUBC of accuracy per seed, a Series indexed by seed."""
    wide = runs.pivot(index="seed", columns="labels", values="accuracy").sort_index()
    return pd.Series(aubc(wide.columns.to_numpy(), wide.to_numpy()), index=wide.index)

"""The summary of a comparison: final metrics, AUBC and the paired difference to the baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egal_bench.statistics.convergence import unfitted
from egal_bench.statistics.curves import aubc
from egal_bench.statistics.power import standard_error

METRICS = ("accuracy", "macro_auc", "aubc", "gain")


def reaching(rounds: pd.DataFrame, last: int) -> pd.DataFrame:
    """Return the rows of `rounds` up to round `last`, of the runs that have reached it."""
    reached = rounds.groupby(["dataset", "strategy", "seed"])["round"].transform("max") >= last
    return rounds[reached & (rounds["round"] <= last)]


def summarise(rounds: pd.DataFrame, selections: pd.DataFrame | None = None, baseline: str = "random") -> pd.DataFrame:
    """Return one row per data set and strategy: final metrics, AUBC and the paired difference to `baseline`.

    Args:
        rounds: the `rounds` table, in which every run has the same rounds.
        selections: the `selections` table of the same runs; None: the share of ties is unknown.
        baseline: the strategy with which the others are compared.

    Columns `X` and `X_sd` for X in METRICS, where `gain` is the AUBC minus the baseline's of the same seed (NaN without
    the baseline): mean and sample sd over seeds (NaN for one seed). `seeds`, and `pairs`, the seeds that the baseline
    has too; `wins`: seeds with gain > 0. `labels`, `masks` (mean), `test_size`, `test_se`: of the last round. `tied`:
    share of the purchases that had the score of a sample that was not bought. `unfitted`: share of the rounds whose
    network has not fitted its labels (see `convergence`). Rows come in the order of `rounds`.
    """
    rows = []
    for dataset, of_dataset in rounds.groupby("dataset", sort=False):
        areas = {name: _areas(runs) for name, runs in of_dataset.groupby("strategy", sort=False)}
        for name, runs in of_dataset.groupby("strategy", sort=False):
            last = runs[runs["round"] == runs["round"].max()].set_index("seed").sort_index()
            gain = (areas[name] - areas[baseline]).dropna() if baseline in areas else areas[name] * np.nan
            columns = {"accuracy": last.accuracy, "macro_auc": last.macro_auc, "aubc": areas[name], "gain": gain}
            row = {"dataset": dataset, "strategy": name, "seeds": len(last), "pairs": int(gain.notna().sum())}
            for column, values in columns.items():
                row |= {column: values.mean(), f"{column}_sd": values.std(ddof=1)}
            size = int(last.test_size.iloc[0])
            row |= {"wins": int((gain > 0).sum()), "labels": int(last.labels.max()), "masks": last.masks.mean()}
            row |= {"test_size": size, "test_se": standard_error(last.accuracy.mean(), size)}
            rows.append(row | {"tied": _tied(selections, dataset, name), "unfitted": unfitted(runs)})
    return pd.DataFrame(rows)


def _areas(runs: pd.DataFrame) -> pd.Series:
    """Return the AUBC of accuracy per seed, a Series indexed by seed."""
    wide = runs.pivot(index="seed", columns="labels", values="accuracy").sort_index()
    return pd.Series(aubc(wide.columns.to_numpy(), wide.to_numpy()), index=wide.index)


def _tied(selections: pd.DataFrame | None, dataset: object, strategy: object) -> float:
    """Return the share of tied purchases; NaN where it is unknown or purchases have no scores."""
    if selections is None:
        return float("nan")
    bought = selections[(selections.dataset == dataset) & (selections.strategy == strategy) & (selections["round"] > 0)]
    return float(bought.tied.mean()) if bought.score.notna().any() else float("nan")

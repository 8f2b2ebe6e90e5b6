"""The summary of a comparison: final metrics, AUBC and the paired difference to the baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd

from egal_bench.statistics.curves import aubc
from egal_bench.statistics.power import standard_error


def summarise(rounds: pd.DataFrame, baseline: str = "random") -> pd.DataFrame:
    """Return one row per data set and strategy: final metrics, AUBC and the paired difference to `baseline`.

    Args:
        rounds: the `rounds` table, in which every seed has the same rounds.
        baseline: the strategy with which the others are compared.

    Columns `X` and `X_sd` for X in accuracy, macro_auc, aubc and `gain` (AUBC minus the baseline's of the same
    seed; NaN without the baseline): mean and sample sd over seeds (NaN for one seed). `wins`: seeds
    with gain > 0. `labels`, `masks` (mean), `test_size`, `test_se`: of the last round. Rows come in
    the order in which `rounds` names them.
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
    """Return the AUBC of accuracy per seed, a Series indexed by seed."""
    wide = runs.pivot(index="seed", columns="labels", values="accuracy").sort_index()
    return pd.Series(aubc(wide.columns.to_numpy(), wide.to_numpy()), index=wide.index)

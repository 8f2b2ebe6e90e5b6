"""Outcomes: the tidy tables that the other statistics read, with one value per run (and per budget).

`curves` have the columns dataset, strategy, seed, metric, round, labels, masks, value: one row per run, round and
metric. `outcomes` have dataset, strategy, seed, metric, outcome, value: one row per run, metric and outcome, which is
"final" (the value at the data set's largest budget) or "aubc" (the area under the budget curve).
A statistic groups by all columns but strategy, seed and value, and joins strategies by seed, never by row order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.errors import BenchError
from egal_bench.statistics.curves import aubc

METRICS = ("accuracy", "balanced_accuracy", "macro_auc", "macro_f1", "nll", "ece")
LOWER_IS_BETTER = frozenset({"nll", "ece"})
RUN = ["dataset", "strategy", "seed"]
CURVE = [*RUN, "metric", "round", "labels", "masks", "value"]
OUTCOME = [*RUN, "metric", "outcome", "value"]


def direction(metric: str) -> int:
    """Return 1 where a higher value of the metric is better, −1 where a lower one is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def curves(rounds: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Return the curves of the `rounds` table, one row per run, round and metric.

    Raises:
        BenchError: the same run stands in the table twice.
    """
    rounds = rounds.reset_index(drop=True)
    twice = rounds[rounds.duplicated([*RUN, "round"])]
    if len(twice):
        row = twice.iloc[0]
        raise BenchError(
            f"dataset {row.dataset}, strategy {row.strategy}, seed {row.seed} occurs twice in the results; "
            "give every results folder only once, and join only folders whose runs differ"
        )
    columns = [*RUN, "round", "labels", "masks"]
    return rounds.melt(columns, list(metrics), var_name="metric", value_name="value")[CURVE]


def final(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the outcome "final": each run's value at the largest budget of its data set.

    A run that ended before that budget has no row.
    """
    last = curves["labels"] == curves.groupby("dataset")["labels"].transform("max")
    return curves[last].dropna(subset=["value"]).assign(outcome="final")[OUTCOME].reset_index(drop=True)


def area(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the outcome "aubc": each run's area under the budget curve, over the labels really spent.

    A run that lacks the value at one of its data set's budgets has no row.
    """
    parts = []
    for names, cell in split(curves, ["dataset", "metric"]):
        wide = cell.pivot(index=["strategy", "seed"], columns="labels", values="value").dropna()
        areas = aubc(wide.columns.to_numpy(), wide.to_numpy())
        parts.append(wide.index.to_frame(index=False).assign(**names, outcome="aubc", value=areas))
    return pd.concat(parts, ignore_index=True)[OUTCOME] if parts else pd.DataFrame(columns=OUTCOME)


def both(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the outcomes "final" and "aubc" of the curves, one below the other."""
    return pd.concat([final(curves), area(curves)], ignore_index=True)


def cell_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of curves or outcomes that name what is compared: all but strategy, seed and value.

    Curves are compared at equal labels, so their `round` and `masks` do not count.
    """
    return [name for name in table.columns if name not in {"strategy", "seed", "value", "round", "masks"}]


def split(table: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield ({column: value}, rows) for every combination of values of the columns, in their sorted order."""
    key: Any
    for key, rows in table.groupby(list(columns)):
        yield dict(zip(columns, key, strict=True)), rows


def by_seed(cell: pd.DataFrame) -> pd.DataFrame:
    """Return the values of one cell as a table [S, strategies], indexed by seed; NaN where a run is missing."""
    wide = cell.pivot(index="seed", columns="strategy", values="value").sort_index().astype(np.float64)
    return wide[list(dict.fromkeys(cell["strategy"]))]

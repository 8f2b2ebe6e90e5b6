"""The verdict per strategy and data set: better, worse, equivalent or undecided, and why."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.statistics.outcomes import by_seed, cell_columns, direction, split
from egal_bench.statistics.paired import COLUMNS, differences
from egal_bench.statistics.planning import seeds_needed
from egal_bench.statistics.power import exact_floor
from egal_bench.statistics.significance import equivalence_p, holm, paired_p

VERDICTS = ("better", "worse", "equivalent", "undecided")
JUDGED = ["p", "p_holm", "p_equivalence", "p_equivalence_holm", "comparisons", "verdict", "reason", "seeds_needed"]


def verdicts(
    outcomes: pd.DataFrame,
    baseline: str = "random",
    *,
    margin: float = 0.01,
    alpha: float = 0.05,
    test: str = "sign-flip",
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Return one row per cell and strategy other than the baseline: the paired difference, its tests, the verdict.

    Args:
        outcomes: outcomes (a cell is a data set, metric and outcome) or curves.
        baseline: name of the strategy that the others are compared with.
        margin: a mean difference below it does not matter, in units of the metric: 0.01 is 1 point of accuracy.
        alpha: level of each family of tests.
        test: as in `significance.paired_p`.
        rng: needed above `significance.EXACT_SEEDS` seeds; each cell begins with a copy, so its p do not depend on the
            other cells.
    Columns: those of `paired.differences`, and
    `p`, `p_holm`: p of the paired test. `p_equivalence`, `p_equivalence_holm`: p of TOST within ±margin.
    `comparisons`: size of the family, which is all comparisons with the baseline in the same cell that can be tested.
    `verdict`: "equivalent" where p_equivalence_holm ≤ alpha, also where a difference within the margin is
    significant; else "better" or "worse", by the sign of the mean, where p_holm ≤ alpha; else "undecided".
    `reason`: a clause that says why.
    `seeds_needed`: for "undecided", roughly the seeds that would decide (see planning.py), else NaN.
    """
    columns, tables = cell_columns(outcomes), []
    for names, cell in split(outcomes, columns):
        rows = differences(cell, baseline, level=1 - alpha)
        if rows.empty:
            continue
        values = by_seed(cell)
        d = values[rows["strategy"]].sub(values.get(baseline, np.nan), axis=0).to_numpy()  # [S, strategies]
        p, beyond = paired_p(d, test, deepcopy(rng)), equivalence_p(d, margin)
        rows = rows.assign(p=p, p_holm=holm(p), p_equivalence=beyond, p_equivalence_holm=holm(beyond))
        gain = direction(names["metric"]) * rows["difference"].to_numpy(np.float64)
        rows = rows.assign(comparisons=np.isfinite(p).sum(), verdict=classify(gain, holm(p), holm(beyond), alpha))
        rows["reason"] = [_reason(row, baseline, margin, alpha, test) for row in rows.itertuples()]
        rows["seeds_needed"] = [_needed(row, margin, alpha) for row in rows.itertuples()]
        tables.append(rows)
    if not tables:
        return pd.DataFrame(columns=[*columns, "strategy", *COLUMNS, *JUDGED])
    return pd.concat(tables, ignore_index=True)


def classify(gain: np.ndarray, p: np.ndarray, p_equivalence: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """Return the verdict of each comparison, str [M], from p values that are already corrected.

    Args:
        gain: float [M], the mean difference, positive where the strategy is better.
        p: float [M], of "there is no difference".
        p_equivalence: float [M], of "the difference is beyond the margin".
        alpha: level of the family.
    """
    different, equivalent = p <= alpha, p_equivalence <= alpha
    return np.select(
        [equivalent, different & (gain > 0), different & (gain < 0)], ["equivalent", "better", "worse"], "undecided"
    )


def _reason(row: Any, baseline: str, margin: float, alpha: float, test: str) -> str:
    """Return the clause that says why a row has its verdict."""
    if row.pairs < 2:
        return f"{'only 1 seed' if row.pairs else 'no seed'} was run with both this strategy and {baseline}"
    if row.verdict == "equivalent":
        if row.tied == row.pairs:
            return f"every seed gives exactly the value of {baseline}"
        return f"the difference is {'significant, but ' * (row.p_holm <= alpha)}within the margin of {margin:g}"
    if row.verdict != "undecided":
        return f"the difference is significant (p = {row.p_holm:.2g} after Holm's correction)"
    floor = exact_floor(row.comparisons, alpha)
    if test != "t" and row.pairs < floor:
        family = f"{row.comparisons} comparison{'s' * (row.comparisons != 1)}"
        return f"{row.pairs} seeds cannot show a difference among {family}; {floor} can"
    return f"the difference is neither significant nor shown to be within the margin of {margin:g}"


def _needed(row: Any, margin: float, alpha: float) -> float:
    """Return the seeds that would decide an undecided row, more than it has; NaN where that makes no sense."""
    if row.verdict != "undecided" or row.pairs < 2:
        return np.nan
    return max(seeds_needed(row.difference, row.sd, margin, comparisons=row.comparisons, alpha=alpha), row.pairs + 1.0)

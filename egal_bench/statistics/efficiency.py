"""Label efficiency: labels and masks that a strategy needs to reach the baseline's final value.

The target of a seed is the final value of the baseline's run with that seed. A run needs the labels at which its
curve, linear between budgets, first reaches the target. A run that never reaches it is censored at its last budget:
it needs more than that, and the median over seeds is Kaplan and Meier's, which knows the difference. Its interval
is Brookmeyer and Crowley's, from the log-log transformed survival curve.
The baseline's own need is read off its curve in the same way, so that a noisy curve favours neither side.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from statsmodels.duration.survfunc import SurvfuncRight

from egal_bench.statistics.outcomes import direction, split

COSTS = ("labels", "masks")
AMOUNTS = (*COSTS, "labels_ratio", "masks_ratio")
EFFICIENCY = [
    "dataset", "metric", "strategy", "seeds", "reached",
    *(f"{name}{end}" for name in AMOUNTS for end in ("", "_low", "_high")),
]  # fmt: skip
NEEDS = ["dataset", "metric", "strategy", "seed", "target", "reached", *AMOUNTS]


def first_reach(values: np.ndarray, target: float) -> float:
    """Return the position on a curve, in rounds and fractions of one, at which it first reaches the target, else NaN.

    Args:
        values: float [R], one value per round, a higher one is better; a NaN never reaches anything.
        target: value to reach, in the same units.
    """
    reached = np.flatnonzero(values >= target)
    if not len(reached):
        return np.nan
    after = int(reached[0])
    if after == 0 or np.isnan(values[after - 1]):
        return float(after)
    return after - 1 + (target - values[after - 1]) / (values[after] - values[after - 1])


def needs(curves: pd.DataFrame, baseline: str = "random") -> pd.DataFrame:
    """Return one row per data set, metric, strategy and seed that the baseline has too.

    Args:
        curves: with any number of data sets and metrics.
        baseline: name of the strategy that sets the target; it has rows as well.
    Columns: `target`: the baseline's final value of that seed. `reached`: whether the run's curve reaches it.
    `labels`, `masks`: what the run had spent by then, or at its last budget where it is censored. `labels_ratio`,
    `masks_ratio`: the same, divided by what the baseline needs with that seed; below 1 saves; NaN where the baseline
    needs none (random sampling needs no masks). Ratios of a censored run are censored too: the true ones are larger.
    """
    rows = []
    for key, cell in split(curves, ["dataset", "metric"]):
        sign, last = direction(key["metric"]), cell["labels"].max()
        runs = {tuple(name.values()): run.sort_values("labels") for name, run in split(cell, ["strategy", "seed"])}
        for (strategy, seed), run in runs.items():
            reference = runs.get((baseline, seed))
            if reference is None or reference["labels"].iloc[-1] != last or np.isnan(reference["value"].iloc[-1]):
                continue
            target = float(reference["value"].iloc[-1])
            reached, spent = _spent(run, sign, target)
            _, base = _spent(reference, sign, target)
            ratios = [a / b if b > 0 else np.nan for a, b in zip(spent, base, strict=True)]
            rows.append([*key.values(), strategy, seed, target, reached, *spent, *ratios])
    return pd.DataFrame(rows, columns=NEEDS)


def _spent(run: pd.DataFrame, sign: int, target: float) -> tuple[bool, list[float]]:
    """Return whether the run reaches the target, and its COSTS there or at its end."""
    position = first_reach(sign * run["value"].to_numpy(np.float64), sign * target)
    at = position if np.isfinite(position) else len(run) - 1
    return bool(np.isfinite(position)), [float(np.interp(at, np.arange(len(run)), run[cost])) for cost in COSTS]


def efficiency(needs: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Return one row per data set, metric and strategy: the medians over seeds, with intervals.

    Args:
        needs: as the function `needs` returns.
        level: confidence of the intervals.
    Columns: `seeds`. `reached`: seeds that reached the target. `labels`, `masks`, `labels_ratio`, `masks_ratio`:
    Kaplan-Meier medians; inf where half of the seeds or more never reach the target, so that the median lies beyond
    the budget; NaN where no seed has a value. `labels_low`, `labels_high` and so on: the ends of the interval of each
    median, see `censored_interval`.
    """
    rows = []
    for key, cell in split(needs, EFFICIENCY[:3]):
        reached, medians = cell["reached"].to_numpy(), []
        for name in AMOUNTS:
            values = cell[name].to_numpy()
            medians += [censored_median(values, reached), *censored_interval(values, reached, level)]
        rows.append([*key.values(), len(cell), int(reached.sum()), *medians])
    return pd.DataFrame(rows, columns=EFFICIENCY)


def censored_median(values: np.ndarray, reached: np.ndarray) -> float:
    """Return the Kaplan-Meier median: the value by which half are estimated to have reached.

    Args:
        values: float [n], the values where reached, else lower bounds of them; NaN is left out.
        reached: bool [n].
    Where the survival curve stays at exactly one half, the median is the middle of that step, so without censoring
    this is the ordinary median. Returns inf where the curve never falls below one half, NaN without a value.
    """
    curve = survival(values, reached)
    if curve is None:
        return np.inf if np.isfinite(values).any() else np.nan
    at_half, below = curve.surv_prob <= 0.5 + 1e-12, curve.surv_prob < 0.5 - 1e-12
    if not below.any():
        return np.inf
    return float((curve.surv_times[at_half.argmax()] + curve.surv_times[below.argmax()]) / 2)


def censored_interval(values: np.ndarray, reached: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval (low, high) of the Kaplan-Meier median, after Brookmeyer and Crowley 1982.

    It holds the values at which the survival curve, on the log-log scale and with Greenwood's error, does not differ
    significantly from one half. The high end is inf where the curve never falls that low. Both ends are NaN where
    there are fewer than two values, or no step of the curve has an error.

    Args:
        values: float [n], as in `censored_median`.
        reached: bool [n].
        level: confidence of the interval.
    """
    curve = survival(values, reached)
    if curve is None or np.isfinite(values).sum() < 2:
        return np.nan, np.nan
    with np.errstate(divide="ignore", invalid="ignore"):  # the step to zero has no error and is never compared
        low, high = curve.quantile_ci(0.5, 1 - level)
    return float(low), float(high)


def survival(values: np.ndarray, reached: np.ndarray) -> SurvfuncRight | None:
    """Return the Kaplan-Meier curve of what is not yet reached, None where nothing is ever reached.

    Args:
        values: float [n], as in `censored_median`.
        reached: bool [n].
    """
    known = np.isfinite(values)
    return SurvfuncRight(values[known], reached[known].astype(int)) if reached[known].any() else None

"""The test set counts too: intervals that know that another test set would have given other numbers.

The groups (patients) of the test set are drawn with replacement, the same draw for every strategy and seed. A draw is
a weight per sample, so metrics are computed with weights, for all draws at once.

Three intervals stand side by side, each estimate ± t · standard error:
"seeds": another set of seeds, the same test set; the error is s/√n.
"test": another test set, the same runs; the error is the bootstrap's, with groups − 1 degrees of freedom.
"both": the two crossed. Var = s²/n + Var_test − Var_interaction/n: the interaction of seeds and test set (each run
errs on other samples) is part of both variances, so it is subtracted once. It is estimated from the draws as well.
The degrees of freedom are Satterthwaite's.
In 2000 simulated studies each of four mixtures of effects of seeds, patients and both together, 95 % intervals of
"both" cover 94–96 %, while "seeds" and "test" alone cover as little as 47 % and 86 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import log_softmax, softmax

from egal_bench.errors import BenchError, unknown
from egal_bench.statistics.metrics import ECE_BINS
from egal_bench.statistics.outcomes import METRICS, split

DRAWS = 1000
_CHUNK = 100  # draws at a time, so that a chunk stays in the cache
SOURCES = ("seeds", "test", "both")
_QUANTITIES = ("value", "difference")
COLUMNS = [
    "dataset", "strategy", "metric", "seeds", "groups", "samples",
    *(f"{name}{end}" for name in _QUANTITIES for end in ("", *(f"_{s}_{e}" for s in SOURCES for e in ("low", "high")))),
]  # fmt: skip


@dataclass(frozen=True)
class GroupDraws:
    """Resamples of one test set's groups: how often each draw takes each sample."""

    weights: np.ndarray  # float32 [N, draws], the count of the sample's group
    groups: int


def draw_groups(group: np.ndarray, rng: np.random.Generator, *, draws: int = DRAWS) -> GroupDraws:
    """Return draws of as many groups as there are, with replacement.

    Args:
        group: [N], the group of each sample, in any order; equal names are one group.
        rng: draws the groups; the groups are taken in the order of their names, not of the samples.
        draws: number of resamples.
    """
    names, member = np.unique(group, return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return GroupDraws(counts.T[member].astype(np.float32), len(names))


def weighted_metric(metric: str, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the metric under every column of weights, float64 [draws].

    Args:
        metric: one of METRICS.
        logits: float [N, K].
        labels: int [N].
        weights: float [N, draws]; weights that are counts give the metric of the resample.
    Classes that a draw lacks do not count in its mean over classes; NaN where nothing is left. For macro F1 a draw
    lacks a class only if it is not predicted there either.
    """
    predicted, classes = logits.argmax(axis=1), range(logits.shape[1])
    hit = predicted == labels
    if metric == "accuracy":
        return _share(hit, np.ones_like(hit), weights)
    if metric == "nll":
        loss = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
        return _ratio(loss @ weights, weights.sum(axis=0, dtype=np.float64))
    if metric == "ece":
        return _weighted_ece(softmax(logits.astype(np.float64), axis=1).max(axis=1), hit, weights)
    if metric == "balanced_accuracy":
        per_class = np.stack([_share(hit, labels == k, weights) for k in classes])
    elif metric == "macro_f1":
        per_class = np.stack([_f1(predicted == k, labels == k, weights) for k in classes])
    elif metric == "macro_auc":
        p = softmax(logits.astype(np.float64), axis=1)
        per_class = np.stack([weighted_auc(p[:, k], labels == k, weights) for k in classes])
    else:
        raise unknown("metric", metric, METRICS)
    defined = np.isfinite(per_class)
    return _ratio(np.where(defined, per_class, 0).sum(axis=0), defined.sum(axis=0))


def _ratio(part: np.ndarray, base: np.ndarray) -> np.ndarray:
    return np.divide(part, base, out=np.full(part.shape, np.nan), where=base > 0)


def _share(hit: np.ndarray, among: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted share of hits among some samples, [draws]."""
    return _ratio(weights[hit & among].sum(axis=0, dtype=np.float64), weights[among].sum(axis=0, dtype=np.float64))


def _f1(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted F1 of one class, [draws], from bool [N] each."""
    right, claimed, real = (weights[rows].sum(axis=0, dtype=np.float64) for rows in (predicted & true, predicted, true))
    return _ratio(2 * right, claimed + real)


def _weighted_ece(confidence: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted expected calibration error, [draws]; see `metrics.expected_calibration_error`."""
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [np.abs((hit - confidence)[bins == i] @ weights[bins == i]) for i in range(ECE_BINS)]
    return _ratio(np.sum(gaps, axis=0), weights.sum(axis=0, dtype=np.float64))


def weighted_auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve under every column of weights, float64 [draws]; a tie counts half.

    Args:
        score: float [N].
        positive: bool [N].
        weights: float [N, draws].
    NaN where a draw has no positive or no negative sample. The scores are sorted once for all draws.
    """
    order = np.argsort(score)
    ones, zeros = order[positive[order]], order[~positive[order]]
    below, upto = (np.searchsorted(score[zeros], score[ones], side) for side in ("left", "right"))
    ties, areas = bool((below != upto).any()), []
    for start in range(0, weights.shape[1], _CHUNK):
        chunk = weights[:, start : start + _CHUNK]
        passed = np.zeros((len(zeros) + 1, chunk.shape[1]))  # weight of the lowest 0, 1, 2, … negatives
        np.cumsum(chunk[zeros], axis=0, out=passed[1:])
        lower = (passed[below] + passed[upto]) / 2 if ties else passed[below]
        areas.append(_ratio((lower * chunk[ones]).sum(axis=0), chunk[ones].sum(axis=0, dtype=np.float64) * passed[-1]))
    return np.concatenate(areas)


def uncertainty(
    predictions: pd.DataFrame,
    metric: str = "accuracy",
    baseline: str = "random",
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Return one row per data set and strategy: its mean value and its difference to the baseline, with intervals.

    Args:
        predictions: rows of the `predictions` table, one round per run, in practice the last one.
        metric: one of METRICS.
        baseline: name of the strategy that is subtracted, seed by seed; its own difference is NaN.
        rng: draws the groups.
        level: confidence of the intervals.
        draws: number of resamples.
    Columns: COLUMNS, where `difference_test_low` is the low end of the difference's interval from the test set alone,
    and so on. `seeds` are the strategy's, for a difference only those that the baseline has too count.
    One seed leaves the intervals of "seeds" and "both" NaN, one group those of "test" and "both".

    Raises:
        BenchError: runs of a data set that have different test sets, or a run with several rounds.
    """
    rows = []
    for key, cell in split(predictions, ["dataset"]):
        values, test = _draw_values(cell, metric, rng, draws)
        for strategy in dict.fromkeys(cell["strategy"]):
            own = {seed: v for (name, seed), v in values.items() if name == strategy}
            paired = [v - values[baseline, s] for s, v in own.items() if (baseline, s) in values]
            row = key | {"strategy": strategy, "metric": metric, "seeds": len(own)}
            row |= {"groups": test.groups, "samples": len(test.weights)}
            quantities = {"value": list(own.values()), "difference": paired if strategy != baseline else []}
            for name, runs in quantities.items():
                if runs:
                    intervals = source_intervals(np.stack(runs), test.groups, level)
                    row |= {name + end: number for end, number in intervals.items()}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _draw_values(
    cell: pd.DataFrame, metric: str, rng: np.random.Generator, draws: int
) -> tuple[dict[tuple[str, int], np.ndarray], GroupDraws]:
    """Return {(strategy, seed): values [1 + draws]} of one data set, the real test set first, and the draws."""
    runs = [(key, run.sort_values("key")) for key, run in split(cell, ["strategy", "seed"])]
    first = runs[0][1]
    test = draw_groups(first["group"].to_numpy(), rng, draws=draws)
    weights = np.concatenate([np.ones_like(test.weights[:, :1]), test.weights], axis=1)
    values = {}
    for key, run in runs:
        strategy, seed = key["strategy"], key["seed"]
        if run["key"].duplicated().any():
            raise BenchError(f"predictions of {strategy}, seed {seed}: several rounds; choose one round per run")
        for column in ("key", "group", "label"):
            if run[column].to_list() != first[column].to_list():
                raise BenchError(
                    f"predictions of {strategy}, seed {seed}: another test set than the other runs of "
                    f"{run['dataset'].iloc[0]}; compare only runs with the same test set"
                )
        logits = np.stack(run["logits"].to_list())
        values[strategy, seed] = weighted_metric(metric, logits, run["label"].to_numpy(), weights)
    return values, test


def source_intervals(values: np.ndarray, groups: int, level: float = 0.95) -> dict[str, float]:
    """Return the mean over seeds, "", and its intervals, "_seeds_low", "_seeds_high", "_test_low" and so on.

    Args:
        values: float [S, 1 + draws], first on the real test set, then on each draw of it.
        groups: groups of the test set.
        level: confidence of the intervals.
    """
    n, real, drawn = len(values), values[:, 0], values[:, 1:]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    seeds = real.var(ddof=1) / n if n > 1 else np.nan
    test = both = freedom = np.nan
    if groups > 1 and drawn.shape[1] > 1:
        scale = groups / (groups - 1)  # a resample of groups spreads less than a new set of them
        test = scale * drawn.mean(axis=0).var()
        if n > 1:
            interaction = scale * (drawn - drawn.mean(axis=0)).var(axis=1).sum() / (n - 1)
            alone = max(test - interaction / n, 0.0)
            both = seeds + alone
            freedom = both**2 / (seeds**2 / (n - 1) + alone**2 / (groups - 1)) if both > 0 else n - 1
    centre = float(real.mean())
    intervals = {"": centre}
    for source, variance, df in (("seeds", seeds, n - 1), ("test", test, groups - 1), ("both", both, freedom)):
        half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance)  # NaN where the variance or df is
        intervals |= {f"_{source}_low": float(centre - half), f"_{source}_high": float(centre + half)}
    return intervals

"""Diagnostics: what each strategy bought, how the final models err, and where the time went."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.reports.joining import Joined
from egal_bench.statistics.calibration import calibration
from egal_bench.statistics.class_rates import confusions
from egal_bench.statistics.correlation import rank_correlation
from egal_bench.statistics.outcomes import split

PURCHASES = [
    "dataset", "strategy", "bought", "tied", "without_roi", "roi_area", "dice_zero",
    "misalignment_roi_correlation",
]  # fmt: skip


def diagnostics(joined: Joined) -> dict[str, pd.DataFrame]:
    """Return the frames of the diagnostics by name; one without any row could not be computed."""
    functions: dict[str, Callable[[Joined], pd.DataFrame]] = {
        "purchases": _purchases, "class_shares": _class_shares, "overlap": _jaccard,
        "confusion": _confusion, "time": _time,
    }  # fmt: skip
    frames = {name: function(joined) for name, function in functions.items()}
    return frames | {"calibration": calibration(joined.predictions)}


def _purchases(joined: Joined) -> pd.DataFrame:
    """Return what each strategy bought after the initial set.

    `tied`, `without_roi`, `dice_zero` are shares: of tied purchases, of samples without ROI, and of samples with ROI
    whose Dice is exactly 0. `roi_area`: mean pixels of the ROIs. `misalignment_roi_correlation`: Spearman's, over the
    samples with ROI; NaN where either is constant.
    """
    rows: list[dict[str, Any]] = []
    for key, all_bought in split(joined.selections, ["dataset", "strategy"]):
        bought = all_bought[all_bought["round"] > 0]
        if bought.empty:
            continue
        known = bought[bought["roi_area"] >= 0]
        with_roi = known[known["roi_area"] > 0]
        d, area = with_roi["misalignment"].to_numpy(), with_roi["roi_area"].to_numpy()
        rows.append(
            key
            | {
                "bought": len(bought),
                "tied": bought["tied"].mean(),
                "without_roi": (known["roi_area"] == 0).mean() if len(known) else np.nan,
                "roi_area": area.mean() if len(area) else np.nan,
                "dice_zero": (with_roi["intersection"] == 0).mean() if len(with_roi) else np.nan,
                "misalignment_roi_correlation": rank_correlation(d, area),
            }
        )
    return pd.DataFrame(rows, columns=PURCHASES)


def _class_shares(joined: Joined) -> pd.DataFrame:
    """Return per round the share of each class among the purchases, and in the initial sets, which are random draws.

    Columns: dataset, strategy, round, label, share, initial. The initial sets of all seeds estimate the pool's shares.
    """
    columns = ["dataset", "strategy", "round", "label", "share", "initial"]
    if joined.selections.empty:
        return pd.DataFrame(columns=columns)
    keys = ["dataset", "strategy", "round"]
    counts = joined.selections.groupby([*keys, "label"]).size().unstack(fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0).reset_index().melt(keys, var_name="label", value_name="share")
    shares = shares.sort_values([*keys, "label"], ignore_index=True)
    first = joined.selections[joined.selections["round"] == 0].drop_duplicates(["dataset", "seed", "key"])
    initial = first.groupby("dataset")["label"].value_counts(normalize=True).rename("initial")
    shares = shares.join(initial, on=["dataset", "label"])
    shares["initial"] = shares["initial"].fillna(0.0)
    return shares[(shares["round"] > 0) & ((shares["share"] > 0) | (shares["initial"] > 0))][columns].reset_index(
        drop=True
    )


def _jaccard(joined: Joined) -> pd.DataFrame:
    """Return the mean over seeds of |A ∩ B| / |A ∪ B| of what two strategies bought after the initial set."""
    rows: list[dict[str, Any]] = []
    bought = joined.selections[joined.selections["round"] > 0]
    for key, cell in split(bought, ["dataset"]):
        sets = {(s["strategy"], s["seed"]): set(run["key"]) for s, run in split(cell, ["strategy", "seed"])}
        names, seeds = sorted({name for name, _ in sets}), sorted({seed for _, seed in sets})
        for a, b in combinations(names, 2):
            values = [
                len(sets[a, s] & sets[b, s]) / len(sets[a, s] | sets[b, s])
                for s in seeds
                if (a, s) in sets and (b, s) in sets
            ]
            if values:
                rows.append(key | {"first": a, "second": b, "seeds": len(values), "jaccard": float(np.mean(values))})
    return pd.DataFrame(rows, columns=["dataset", "first", "second", "seeds", "jaccard"])


def _confusion(joined: Joined) -> pd.DataFrame:
    """Return the final models' confusion matrices, summed over seeds: one row per true and predicted class."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    for (dataset, strategy, _, _), counts in confusions(joined.predictions).items():
        sums[dataset, strategy] = sums.get((dataset, strategy), np.zeros_like(counts)) + counts
    rows = [
        {"dataset": dataset, "strategy": strategy, "label": i, "predicted": j, "samples": int(counts[i, j])}
        for (dataset, strategy), counts in sums.items()
        for i, j in np.ndindex(*counts.shape)
    ]
    return pd.DataFrame(rows, columns=["dataset", "strategy", "label", "predicted", "samples"])


def _time(joined: Joined) -> pd.DataFrame:
    """Return the mean seconds of a run in training, scoring the pool and evaluation."""
    names = ["train_s", "score_s", "eval_s"]
    runs = joined.rounds.groupby(["dataset", "strategy", "seed"])[names].sum()
    return runs.groupby(["dataset", "strategy"]).mean().reset_index()

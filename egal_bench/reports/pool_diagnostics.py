"""What the queries could have bought, and what they bought: numbers and points of the table `pool`.

The table is for the report only. Its ROIs count as no masks, since no strategy has read them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.reports.joining import Joined
from egal_bench.statistics.correlation import mean_correlation, rank_correlation
from egal_bench.statistics.outcomes import RUN, split
from egal_bench.tables.files import read

POINTS = 250  # samples per query, of those not bought, that the chart shows
QUERIES = [
    *RUN, "round", "samples", "without_roi", "dice_zero", "dice_zero_bought", "roi_area_correlation",
    "prediction_correlation", "distance", "distance_bought",
]  # fmt: skip
POOL = [
    "dataset", "strategy", "seeds", "samples", "without_roi", "dice_zero", "dice_zero_bought", "roi_area_correlation",
    "roi_area_correlation_low", "roi_area_correlation_high",
]  # fmt: skip
PER_ROUND = ["dataset", "strategy", "round", "seeds", "distance", "distance_bought", "ratio"]
PREDICTION = ["dataset", "strategy", "round", "seeds", "correlation", "low", "high"]
POINT_COLUMNS = ["dataset", "strategy", "seed", "round", "bought", "entropy", "misalignment"]


@dataclass(frozen=True)
class PoolDiagnostics:
    """Frames from the table `pool`.

    Attributes:
        pool: per data set and strategy, means over seeds at the last recorded query: shares of samples without ROI and
            of Dice exactly 0, in the pool and among the bought ones, and the rank correlation of the misalignment with
            the ROI's area over the pool, with its interval.
        distances: per recorded query, the mean distance to the nearest labelled sample in pooled features, of samples
            that were not bought and of the bought ones, and the ratio of the two.
        predictions: per recorded query, the rank correlation of the predicted with the true misalignment.
        points: entropy and misalignment of some samples of the lowest seed of each data set.
    """

    pool: pd.DataFrame
    distances: pd.DataFrame
    predictions: pd.DataFrame
    points: pd.DataFrame


def pool_diagnostics(joined: Joined, rng: np.random.Generator) -> PoolDiagnostics:
    """Return the diagnostics of all runs that have kept the table `pool`; frames without rows where none has.

    One run at a time is in memory.

    Args:
        joined: the runs.
        rng: draws the points that are shown.
    """
    rows: list[dict[str, Any]] = []
    points: list[pd.DataFrame] = []
    kept = [run for run in joined.records if "pool" in joined.kept[run]]
    lowest = {run.dataset: min(other.seed for other in kept if other.dataset == run.dataset) for run in kept}
    for run in kept:
        folder, name = joined.places[run]
        table = read(folder.part("pool", name), "pool").to_pandas()
        for key, query in split(table, ["round"]):
            rows.append(run._asdict() | key | _numbers(query))
            if run.seed == lowest[run.dataset]:
                points.append(_points(query, rng).assign(**run._asdict()))
    queries = pd.DataFrame(rows, columns=QUERIES)
    shown = pd.concat(points, ignore_index=True) if points else pd.DataFrame(columns=POINT_COLUMNS)
    return PoolDiagnostics(_pool(queries), _distances(queries), _predictions(queries), shown[POINT_COLUMNS])


def _numbers(query: pd.DataFrame) -> dict[str, float]:
    """Return the numbers of one query of one run."""
    others, bought = query[~query["bought"]], query[query["bought"]]
    d = others["misalignment"].to_numpy(np.float64)
    area = np.where(others["roi_area"] > 0, others["roi_area"], np.nan)
    return {
        "samples": len(others),
        "without_roi": float((others["roi_area"] == 0).mean()) if len(others) else np.nan,
        "dice_zero": _dice_zero(others),
        "dice_zero_bought": _dice_zero(bought),
        "roi_area_correlation": rank_correlation(d, area),
        "prediction_correlation": rank_correlation(d, others["predicted_misalignment"].to_numpy(np.float64)),
        "distance": float(others["distance"].mean()),
        "distance_bought": float(bought["distance"].mean()),
    }


def _dice_zero(samples: pd.DataFrame) -> float:
    """Return the share of samples with ROI whose Dice is exactly 0; NaN without such samples."""
    d = samples["misalignment"].dropna()
    return float((d == 1).mean()) if len(d) else np.nan


def _points(query: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    others = np.flatnonzero(~query["bought"])
    chosen = rng.permutation(others)[:POINTS]
    return query.iloc[np.sort(np.concatenate([np.flatnonzero(query["bought"]), chosen]))]


def _pool(queries: pd.DataFrame) -> pd.DataFrame:
    rows = []
    last = queries[queries["round"] == queries.groupby("dataset")["round"].transform("max")]
    for key, cell in split(last, ["dataset", "strategy"]):
        mean, low, high = mean_correlation(cell["roi_area_correlation"].to_numpy(np.float64))
        means = {name: cell[name].mean() for name in ("samples", "without_roi", "dice_zero", "dice_zero_bought")}
        rows.append(
            key | {"seeds": len(cell)} | means
            | {"roi_area_correlation": mean, "roi_area_correlation_low": low, "roi_area_correlation_high": high}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=POOL)


def _distances(queries: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, cell in split(queries, PER_ROUND[:3]):
        others, bought = cell["distance"].mean(), cell["distance_bought"].mean()
        ratio = bought / others if others > 0 else np.nan
        rows.append(key | {"seeds": len(cell), "distance": others, "distance_bought": bought, "ratio": ratio})
    return pd.DataFrame(rows, columns=PER_ROUND)


def _predictions(queries: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, cell in split(queries, PREDICTION[:3]):
        correlations = cell["prediction_correlation"].to_numpy(np.float64)
        mean, low, high = mean_correlation(correlations)
        if np.isfinite(mean):
            rows.append(key | {"seeds": int(np.isfinite(correlations).sum()), "correlation": mean})
            rows[-1] |= {"low": low, "high": high}
    return pd.DataFrame(rows, columns=PREDICTION)

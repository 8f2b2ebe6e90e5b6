"""Calibration curves: how often the predicted class is right, by how confident the model is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import softmax
from statsmodels.stats.proportion import proportion_confint

from egal_bench.statistics.outcomes import split

BINS = 10
CALIBRATION = ["dataset", "strategy", "bin", "confidence", "accuracy", "low", "high", "samples", "seeds"]


def calibration(predictions: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """Return one row per data set, strategy and bin of the top probability that holds a sample.

    Args:
        predictions: rows of the `predictions` table, one round per run, in practice the last one.
        bins: number of bins of equal width; a value on an edge belongs to the upper bin.
    Columns: `confidence`: mean top probability. `accuracy`: share whose predicted class is right. `samples`,
    `seeds`: all seeds together, and their number. `low`, `high`: Wilson's 95 % interval of the accuracy for samples /
    seeds test samples, since the runs of all seeds share the test set.
    """
    parts = []
    for key, cell in split(predictions, ["dataset", "strategy"]):
        p = softmax(np.stack(cell["logits"].to_list()).astype(np.float64), axis=1)
        confidence, hit = p.max(axis=1), p.argmax(axis=1) == cell["label"].to_numpy()
        frame = pd.DataFrame({"bin": np.minimum((confidence * bins).astype(int), bins - 1), "samples": 1})
        frame = frame.assign(confidence=confidence, accuracy=hit)
        rows = frame.groupby("bin").agg(
            confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), samples=("samples", "sum")
        )
        seeds = cell["seed"].nunique()
        size = rows["samples"].to_numpy() / seeds
        low, high = proportion_confint(rows["accuracy"].to_numpy() * size, size, method="wilson")
        parts.append(rows.reset_index().assign(**key, low=low, high=high, seeds=seeds))
    return pd.concat(parts, ignore_index=True)[CALIBRATION] if parts else pd.DataFrame(columns=CALIBRATION)

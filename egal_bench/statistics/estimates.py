"""Means and interquartile means over seeds, with intervals that hold with five to ten seeds.

The percentile bootstrap covers only 83 % of the time with 5 seeds where it promises 95 %, so it is not used. Both
intervals here are estimate ± t · standard error. For the mean the error is s/√n (Student's interval, which is what a
bootstrap of the standard error tends to with many draws). For the interquartile mean it is the bootstrap's, times
√((n − ½)/(n − 1)) because resamples spread less than samples do: a factor between the 1 that is too short for several
strata and the √(n/(n − 1)) that is too long for one, chosen by simulation.

Coverage of 95 % intervals, over 5, 6, 8 and 10 seeds (10 000 simulated studies or more for each):
mean: 95 % (normal), 93–95 % (uniform), 94–96 % (normal rounded to ties), 93–94 % (skewed: gamma with shape 4);
IQM: 96–97 % (normal), 93–94 % (uniform), 96–97 % (ties), 95–96 % (skewed);
IQM pooled over two or three data sets: 94–95 %, and 92–93 % where the data sets lie ten standard deviations apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from egal_bench.statistics.outcomes import cell_columns, split

DRAWS = 1000  # resamples of a bootstrap: its standard error is known to about 2 %
_CHUNK = 64  # cells resampled at a time, which bounds memory


def iqm(values: np.ndarray) -> np.ndarray:
    """Return the interquartile mean over the last axis: the mean without the lowest and highest quarter.

    ⌊n/4⌋ values are cut at each end, as in Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
    statistical precipice". It suffers less from an outlier than the mean, and uses more values than the median.
    """
    return np.asarray(stats.trim_mean(values, 0.25, axis=-1))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's interval (low, high) of the mean over the last axis; NaN for fewer than two values."""
    n = values.shape[-1]
    if n < 2:
        missing = np.full(values.shape[:-1], np.nan)
        return missing, missing
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    centre = values.mean(axis=-1)
    return centre - half, centre + half


def iqm_interval(
    strata: Sequence[np.ndarray], rng: np.random.Generator, *, level: float = 0.95, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval (low, high) of the IQM over all strata's seeds, by a stratified bootstrap.

    Args:
        strata: one array [..., n_d] per stratum (a data set), whose n_d seeds are resampled within the stratum.
        rng: draws the resamples, the same ones for every cell of the leading axes.
        level: confidence, between 0 and 1.
        draws: number of resamples.
    NaN for fewer than two values in some stratum.
    """
    shape = strata[0].shape[:-1]
    if min(values.shape[-1] for values in strata) < 2:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    indices = [rng.integers(values.shape[-1], size=(draws, values.shape[-1])) for values in strata]
    flat = [values.reshape(-1, values.shape[-1]) for values in strata]
    cells = len(flat[0])
    error = np.empty(cells)
    for start in range(0, cells, _CHUNK):
        stop = start + _CHUNK
        resamples = [values[start:stop][:, index] for values, index in zip(flat, indices, strict=True)]
        error[start:stop] = iqm(np.concatenate(resamples, axis=-1)).std(axis=-1)
    total = sum(values.shape[-1] for values in strata)
    freedom = total - len(strata)
    half = stats.t.ppf((1 + level) / 2, freedom) * error.reshape(shape) * np.sqrt((total - len(strata) / 2) / freedom)
    centre = iqm(np.concatenate(strata, axis=-1))
    return centre - half, centre + half


def estimates(
    table: pd.DataFrame, rng: np.random.Generator, *, level: float = 0.95, draws: int = DRAWS
) -> pd.DataFrame:
    """Return one row per cell and strategy: seeds, mean, sd, mean_low, mean_high, iqm, iqm_low, iqm_high.

    Args:
        table: curves (a cell is a data set, metric and budget) or outcomes (a data set, metric and outcome).
        rng: draws the resamples of the IQM's interval.
        level: confidence of the intervals.
        draws: number of resamples.
    With one seed, sd and the intervals are NaN. Rows are sorted by their keys.
    """
    keys = ["strategy", *cell_columns(table)]
    table = table.dropna(subset=["value"]).sort_values([*keys, "seed"])
    rows = table.groupby(keys)["value"].agg(seeds="size").reset_index()
    values = table["value"].to_numpy(np.float64)
    sizes = rows["seeds"].to_numpy()
    starts = np.cumsum(sizes) - sizes
    columns = {name: np.full(len(rows), np.nan) for name in ("mean", "sd", "mean_low", "mean_high")}
    columns |= {name: np.full(len(rows), np.nan) for name in ("iqm", "iqm_low", "iqm_high")}
    for n in np.unique(sizes):
        where = sizes == n
        block = values[starts[where, None] + np.arange(n)]  # [cells, n]
        columns["mean"][where] = block.mean(axis=1)
        columns["iqm"][where] = iqm(block)
        if n > 1:
            columns["sd"][where] = block.std(axis=1, ddof=1)
            columns["mean_low"][where], columns["mean_high"][where] = mean_interval(block, level)
            columns["iqm_low"][where], columns["iqm_high"][where] = iqm_interval([block], rng, level=level, draws=draws)
    return rows.assign(**columns)


def pooled_iqm(
    outcomes: pd.DataFrame, rng: np.random.Generator, *, level: float = 0.95, draws: int = DRAWS
) -> pd.DataFrame:
    """Return the IQM over all data sets, one row per strategy, metric and outcome, with columns datasets and seeds.

    Args:
        outcomes: outcomes of one or several data sets.
        rng: draws the resamples, within each data set.
        level: confidence of the interval.
        draws: number of resamples.
    `seeds` counts the runs of all data sets. Only strategies with equal `datasets` can be compared.
    """
    rows = []
    keys = ["strategy", *(name for name in cell_columns(outcomes) if name != "dataset")]
    for names, cell in split(outcomes.dropna(subset=["value"]).sort_values("seed"), keys):
        strata = [part["value"].to_numpy(np.float64) for _, part in cell.groupby("dataset")]
        low, high = iqm_interval(strata, rng, level=level, draws=draws)
        row = {"datasets": len(strata), "seeds": len(cell), "iqm": float(iqm(np.concatenate(strata)))}
        rows.append(names | row | {"iqm_low": float(low), "iqm_high": float(high)})
    return pd.DataFrame(rows, columns=[*keys, "datasets", "seeds", "iqm", "iqm_low", "iqm_high"])

"""The figure of a comparison: learning curves by labels and by masks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from egal_bench.files import replacing

BASELINE_COLOUR = "#4d4d4d"
COLOURS = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
]  # Okabe and Ito, safe for colour-blind eyes


def draw_learning_curves(rounds: pd.DataFrame, path: Path) -> None:
    """Write a PNG with one row per data set: test accuracy against labels (mean and sd band) and against masks."""
    datasets = list(dict.fromkeys(rounds.dataset))
    figure = Figure(figsize=(11, 4.2 * len(datasets)), layout="constrained")
    for (left, right), dataset in zip(figure.subplots(len(datasets), 2, squeeze=False), datasets, strict=True):
        of_dataset = rounds[rounds.dataset == dataset]
        colours = iter(COLOURS * len(of_dataset))
        for name, runs in of_dataset.groupby("strategy", sort=False):
            colour = BASELINE_COLOUR if name == "random" else next(colours)
            means = (
                runs.groupby("round").agg({"labels": "mean", "masks": "mean", "accuracy": ["mean", "std"]}).fillna(0.0)
            )
            y, sd = means["accuracy", "mean"], means["accuracy", "std"]
            for axis, x in ((left, means["labels", "mean"]), (right, means["masks", "mean"])):
                axis.plot(x, y, marker="o", markersize=3.5, color=colour, label=name, alpha=0.9)
            left.fill_between(means["labels", "mean"], y - sd, y + sd, color=colour, alpha=0.13, lw=0)
        size, seeds = of_dataset.test_size.iloc[0], of_dataset.seed.nunique()
        left.set(title=f"{dataset}: mean ± sd over {seeds} seeds, {size} test samples", xlabel="labels")
        right.set(
            title="the same rounds, by masks looked at", xlabel="masks (every ROI looked at, the pool's included)"
        )
        left.legend(frameon=False, loc="best")
        for axis in (left, right):
            axis.set_ylabel("test accuracy")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)

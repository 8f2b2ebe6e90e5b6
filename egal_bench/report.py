"""What a comparison found, for a person: a table and a figure."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from egal_bench.statistics import power_warning

BASELINE_COLOUR = "#4d4d4d"
COLOURS = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
]  # Okabe and Ito, safe for colour-blind eyes


def summary_table(summary: pd.DataFrame) -> Group:
    """A rich table of `statistics.summarise`, in percent, with what must be known to read it below."""
    parts: list[Table | Text] = []
    for dataset, rows in summary.groupby("dataset", sort=False):
        first = rows.iloc[0]
        seeds = "1 seed" if first.seeds == 1 else f"{first.seeds} seeds"
        title = f"{dataset}: %, mean ± sd over {seeds}, after {first.labels} labels"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        table.add_column("strategy", no_wrap=True)
        for name in ("accuracy", "macro AUC", "AUBC", "AUBC−random", "won", "labels", "masks"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows.to_dict("records"):
            table.add_row(
                row["strategy"], *(_spread(row[name], row[f"{name}_sd"]) for name in ("accuracy", "macro_auc", "aubc")),
                *_difference(row), str(row["labels"]), f"{row['masks']:.0f}",
            )  # fmt: skip
        parts += [table, Text(_reading(rows))]
        if warning := power_warning(int(first.seeds)):
            parts.append(Text(f"Warning: {warning}", style="yellow"))
    return Group(*parts)


def _reading(rows: pd.DataFrame) -> str:
    return (
        f"Standard error of one accuracy on the {rows.test_size.iloc[0]} test samples: {100 * rows.test_se.max():.1f}, "
        "shared by all strategies.\n"
        "AUBC: accuracy averaged over the labels spent. AUBC−random: paired by seed; won: seeds above random.\n"
        "masks: ROIs a strategy looked at, the pool's included."
    )


def _spread(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f}" if pd.isna(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _difference(row: dict[Hashable, Any]) -> tuple[str, str]:
    """Gain over random and seeds won; empty for random itself, and where random was not run."""
    if row["strategy"] == "random" or pd.isna(row["gain"]):
        return "", ""
    sd = "" if pd.isna(row["gain_sd"]) else f" ± {100 * row['gain_sd']:.2f}"
    return f"{100 * row['gain']:+.2f}{sd}", f"{row['wins']}/{row['seeds']}"


def draw_learning_curves(rounds: pd.DataFrame, path: Path) -> None:
    """Write a PNG: a row a dataset; test accuracy against labels (mean and sd band over seeds) and against masks."""
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
    figure.savefig(path, dpi=130)

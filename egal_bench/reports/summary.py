"""The summary of a comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from egal_bench.statistics.power import power_warning


def summary_table(summary: pd.DataFrame) -> Group:
    """Return a rich table of `summarise`, in percent, followed by what a reader must know to judge it."""
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
    """Return the gain over random and the seeds won; both are empty for random, and where random was not run."""
    if row["strategy"] == "random" or pd.isna(row["gain"]):
        return "", ""
    sd = "" if pd.isna(row["gain_sd"]) else f" ± {100 * row['gain_sd']:.2f}"
    return f"{100 * row['gain']:+.2f}{sd}", f"{row['wins']}/{row['seeds']}"

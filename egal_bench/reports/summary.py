"""The summary of a comparison for the terminal and for summary.txt, and as the JSON of `compare --json`."""

from __future__ import annotations

import io
import shlex
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from egal_bench.reports.names import listed, shown
from egal_bench.reports.question import LABELS, Question
from egal_bench.reports.verdict import margin_text
from egal_bench.statistics.convergence import convergence_warning
from egal_bench.statistics.power import power_warning
from egal_bench.statistics.summary import METRICS

WIDTH = 100  # columns of text
COLUMNS = ("accuracy", "macro AUC", "AUBC", "AUBC−random", "won", "labels", "masks", "tied")


def closing(summary: pd.DataFrame, sentences: Sequence[str], out: Path, oracles: Collection[str] = ()) -> Group:
    """Return the end of a comparison: its summary, the verdict, and the command that makes the report.

    Args:
        summary: see `statistics.summary.summarise`.
        sentences: see `verdict.short_verdict`.
        out: folder of the results.
        oracles: strategies to mark as such.
    """
    question = Question()
    heading = (
        f"Verdict on the {LABELS[question.metric]} averaged over the labels (AUBC), against {question.baseline}; "
        f"differences within {margin_text(question)} do not matter:"
    )
    report = f"The report, with intervals, tests, figures and audit: egal-bench report {shlex.quote(str(out))}"
    return Group(summary_table(summary, oracles), Text("\n".join(["", heading, *sentences, report])))


def width_of(content: Group) -> int:
    """Return the columns that content needs where no terminal sets a limit: WIDTH, or those of its widest table."""
    console = Console(width=1000)
    parts = [inner for part in content.renderables for inner in (part.renderables if isinstance(part, Group) else ())]
    return max([WIDTH, *(console.measure(part).maximum for part in parts if isinstance(part, Table))])


def as_text(content: Group) -> str:
    """Return rich content as plain text."""
    console = Console(file=io.StringIO(), width=width_of(content), color_system=None, markup=False, emoji=False)
    console.print(content)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def summary_table(summary: pd.DataFrame, oracles: Collection[str] = ()) -> Group:
    """Return a rich table of `summarise` per data set, in percent, with what a reader must know to judge it.

    Strategies of `oracles` are marked as such.
    """
    parts: list[Table | Text] = []
    for dataset, rows in summary.groupby("dataset", sort=False):
        seeds = _number_of_seeds(rows)
        title = f"{shown(dataset)}: %, mean ± sd over {seeds}, after {rows.labels.max()} labels"
        table = Table(box=box.SIMPLE_HEAD, padding=0)
        table.add_column("strategy", no_wrap=True)
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows.to_dict("records"):
            table.add_row(
                Text(f"{shown(row['strategy'])}{' †' * (row['strategy'] in oracles)}"),
                *(_spread(row[name], row[f"{name}_sd"]) for name in ("accuracy", "macro_auc", "aubc")),
                *_difference(row), str(row["labels"]), f"{row['masks']:.0f}",
                "" if pd.isna(row["tied"]) else f"{100 * row['tied']:.0f} %",
            )  # fmt: skip
        parts += [Text(title, style="italic"), table, Text(_reading(rows))]  # a table's own title wraps at its width
        if reading := sorted(set(rows.strategy) & set(oracles)):
            verb = "reads" if len(reading) == 1 else "read"
            parts.append(Text(f"† oracle: {listed(reading)} {verb} labels of the pool, as no real study can."))
        compared = rows[(rows.strategy != "random") & (rows.pairs > 0)]
        warnings = [
            convergence_warning(dict(zip(rows.strategy, rows.unfitted, strict=True))),
            power_warning(int(compared.pairs.max()), len(compared)) if len(compared) else None,
        ]
        parts += [Text(f"Warning: {warning}", style="yellow") for warning in warnings if warning]
    return Group(*parts)


def summary_json(summary: pd.DataFrame) -> dict[str, Any]:
    """Return the results for `compare --json`: per data set and strategy, nothing averaged over data sets.

    "datasets" holds per data set and strategy the means and sds over seeds (accuracy, macro_auc, aubc, gain, in 0..1),
    `seeds`, `pairs`, `wins`, `labels`, `masks`, `tied`, `unfitted` and `test_se`; what is unknown is null.
    "strategies", the form for a single data set, holds `accuracy`, `macro_auc`, `aubc`, `labels` and `masks` alone.
    """
    names = [
        *METRICS,
        *(f"{name}_sd" for name in METRICS),
        "seeds",
        "pairs",
        "wins",
        "labels",
        "masks",
        "tied",
        "unfitted",
        "test_se",
    ]
    datasets = {
        str(dataset): {
            row["strategy"]: {name: None if pd.isna(row[name]) else row[name] for name in names}
            for row in rows.to_dict("records")
        }
        for dataset, rows in summary.groupby("dataset", sort=False)
    }
    result: dict[str, Any] = {"datasets": datasets}
    if len(datasets) == 1:
        short = ("accuracy", "macro_auc", "aubc", "labels", "masks")
        (strategies,) = datasets.values()
        result["strategies"] = {name: {k: row[k] for k in short} for name, row in strategies.items()}
    return result


def _number_of_seeds(rows: pd.DataFrame) -> str:
    low, high = rows.seeds.min(), rows.seeds.max()
    return f"{low} to {high} seeds" if low < high else "1 seed" if high == 1 else f"{high} seeds"


def _reading(rows: pd.DataFrame) -> str:
    return (
        f"Standard error of one accuracy on the {rows.test_size.iloc[0]} test samples: "
        f"{100 * rows.test_se.max():.1f}, shared by all strategies.\n"
        "AUBC: accuracy averaged over the labels spent. AUBC−random: paired by seed; won: seeds above random.\n"
        "masks: ROIs that a strategy looked at, those of the pool included.\n"
        "tied: purchases with the score of a sample that was not bought, so that a random order decided."
    )


def _spread(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f}" if pd.isna(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _difference(row: dict[Hashable, Any]) -> tuple[str, str]:
    """Return the gain over random and the seeds won; both are empty for random, and where random was not run."""
    if row["strategy"] == "random" or pd.isna(row["gain"]):
        return "", ""
    sd = "" if pd.isna(row["gain_sd"]) else f" ± {100 * row['gain_sd']:.2f}"
    return f"{100 * row['gain']:+.2f}{sd}", f"{row['wins']}/{row['pairs']}"

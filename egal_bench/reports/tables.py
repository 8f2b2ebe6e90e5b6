"""The tables of the report, each once, as cells of text: for the page, for LaTeX and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.reports.analysis import Analysis
from egal_bench.reports.classes import ClassNames
from egal_bench.reports.names import latex, markdown, number, shown, spreadsheet, titled
from egal_bench.reports.question import LABELS, OUTCOMES, PRIMARY, SHOWN_METRICS, factor, unit
from egal_bench.statistics.outcomes import split
from egal_bench.statistics.penalty import penalty_matrix
from egal_bench.statistics.power import exact_floor
from egal_bench.statistics.testset import SOURCES


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: name of its files, without the ending.
        title: a heading.
        note: what the columns mean.
        header: one per column; the first column names the row.
        groups: (heading, rows) per data set, or one group without heading.
        raw: the numbers, for the CSV file.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    groups: tuple[tuple[str, list[list[str]]], ...]
    raw: pd.DataFrame

    def csv(self) -> str:
        """Return the numbers as CSV; names are printable and never a formula."""
        return self.raw.map(spreadsheet).rename(columns=spreadsheet).to_csv(index=False)

    def markdown(self) -> str:
        """Return the table in Markdown, with the data set as the first column where there are groups."""
        header, rows = self._flat()
        cells = [[markdown(cell) for cell in row] for row in [header, *rows]]
        lines = [cells[0], ["---"] * len(header), *cells[1:]]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{markdown(self.title)}**\n\n{body}\n\n{markdown(self.note)}\n"

    def latex(self) -> str:
        """Return the table in LaTeX; the document needs \\usepackage{booktabs}."""
        columns = len(self.header)
        lines = [r"\begin{tabular}{l" + "r" * (columns - 1) + "}", r"\toprule"]
        lines += [" & ".join(map(latex, self.header)) + r" \\"]
        for heading, rows in self.groups:
            lines.append(r"\midrule")
            if heading:
                lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{latex(heading)}}}}} \\")
            lines += [" & ".join(map(latex, row)) + r" \\" for row in rows]
        note = latex(self.note)
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {note}", ""])

    def _flat(self) -> tuple[list[str], list[list[str]]]:
        if not any(heading for heading, _ in self.groups):
            return list(self.header), [row for _, rows in self.groups for row in rows]
        return ["data set", *self.header], [[heading, *row] for heading, rows in self.groups for row in rows]


def main_tables(analysis: Analysis, classes: ClassNames) -> list[Table]:
    """Return the tables of results that have any row; oracles are marked."""
    tables = [
        _results(analysis), _verdicts(analysis), _efficiency(analysis), _test_set(analysis),
        _classes(analysis, classes), _penalties(analysis), _ranks(analysis),
    ]  # fmt: skip
    return complete(tables, analysis.joined.oracles)


def complete(tables: Iterable[Table], oracles: Collection[str]) -> list[Table]:
    """Return the tables that have any row, with the names of oracles marked wherever they head a row or column."""
    marked = {shown(name): titled(name, oracles) for name in oracles}

    def of(cells: Iterable[str]) -> list[str]:
        return [marked.get(cell, cell) for cell in cells]

    return [
        replace(
            table, header=tuple(of(table.header)),
            groups=tuple(
                (marked.get(heading, heading), [[*of(row[:1]), *row[1:]] for row in rows])
                for heading, rows in table.groups
            ),
        )
        for table in tables
        if any(rows for _, rows in table.groups)
    ]  # fmt: skip


def grouped(
    frame: pd.DataFrame, row_of: Callable[[dict[Any, Any]], list[str]]
) -> tuple[tuple[str, list[list[str]]], ...]:
    """Return (data set, rows of cells), where `row_of` turns a row of the frame into cells."""
    return tuple(
        (shown(key["dataset"]), [row_of(row) for row in rows.to_dict("records")])
        for key, rows in split(frame, ["dataset"])
    )


def _ordered(frame: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Return the rows with the baseline first, then by name."""
    places = {name: i for i, name in enumerate(analysis.strategies)}
    return frame.sort_values("strategy", key=lambda names: names.map(places), kind="stable")


def spread(mean: float, sd: float, digits: int = 1) -> str:
    """Return "mean ± sd", or the mean alone where no sd is known."""
    return number(mean, digits) if np.isnan(sd) else f"{number(mean, digits)} ± {number(sd, digits)}"


def interval_text(low: float, high: float, digits: int = 2, *, sign: bool = True) -> str:
    """Return "low to high", "–" where they are not known."""
    return "–" if np.isnan(low) else f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def percent(share: float) -> str:
    """Return a share in percent, "–" where it is not known."""
    return "–" if np.isnan(share) else f"{number(100 * share, 0)} %"


def _results(analysis: Analysis) -> Table:
    question = analysis.question
    metrics = [name for name in SHOWN_METRICS if (analysis.estimates["metric"] == name).any()]
    cells = {
        (row["dataset"], row["strategy"], row["metric"], row["outcome"]): row
        for row in analysis.estimates.to_dict("records")
    }
    rounds = analysis.joined.rounds
    last = rounds[rounds["labels"] == rounds.groupby("dataset")["labels"].transform("max")]
    rows = last.groupby(["dataset", "strategy"]).agg(
        seeds=("seed", "nunique"), labels=("labels", "max"), masks=("masks", "mean")
    )

    def row_of(row: Mapping[str, Any]) -> list[str]:
        key = row["dataset"], row["strategy"]
        texts = [shown(row["strategy"]), str(row["seeds"]), str(row["labels"]), number(row["masks"], 0)]
        for metric in metrics:
            cell, scale = cells.get((*key, metric, "final")), factor(metric)
            digits = 3 if metric == "nll" else 1
            texts.append(spread(scale * cell["mean"], scale * cell["sd"], digits) if cell else "–")
        area, scale = cells.get((*key, question.metric, "aubc")), factor(question.metric)
        texts.append(spread(scale * area["mean"], scale * area["sd"]) if area else "–")
        low, high = (scale * area["iqm_low"], scale * area["iqm_high"]) if area else (np.nan, np.nan)
        interval = "" if np.isnan(low) else f" ({interval_text(low, high, 1, sign=False)})"
        texts.append(f"{number(scale * area['iqm'], 1)}{interval}" if area else "–")
        return texts

    shown_metrics = [f"{LABELS[name]}{'' if name == 'nll' else ', %'}" for name in metrics]
    main = LABELS[question.metric]
    return Table(
        "results", "Final values and AUBC",
        "Mean ± standard deviation over seeds after the last round. AUBC: the metric averaged over the labels spent. "
        "IQM: interquartile mean over seeds, with a 95 % interval. Masks: the ROIs that a run looked at, those of the "
        "pool included.",
        ("strategy", "seeds", "labels", "masks", *shown_metrics, f"AUBC of {main}", "IQM of that AUBC"),
        grouped(_ordered(rows.reset_index(), analysis), row_of), analysis.estimates,
    )  # fmt: skip


def _verdicts(analysis: Analysis) -> Table:
    question = analysis.question
    scale, baseline = factor(question.metric), shown(question.baseline)
    frame = analysis.of_question(analysis.verdicts)
    order = frame.assign(first=frame["outcome"] != PRIMARY).sort_values(["dataset", "first"], kind="stable")

    def row_of(row: Mapping[str, Any]) -> list[str]:
        return [
            shown(row["strategy"]), "AUBC" if row["outcome"] == PRIMARY else "final",
            number(scale * row["difference"], sign=True), interval_text(scale * row["low"], scale * row["high"]),
            f"{row['won']:.0f} of {row['pairs']}" if row["pairs"] else "–", number(row["effect"], sign=True),
            percent(row["improvement"]), number(row["p"], 4), number(row["p_holm"], 4),
            number(row["p_equivalence_holm"], 4), row["verdict"],
            "> 1000" if np.isinf(row["seeds_needed"]) else number(row["seeds_needed"], 0),
        ]  # fmt: skip

    return Table(
        "differences", f"Differences to {baseline}",
        f"{LABELS[question.metric].capitalize()} minus that of {baseline}, in {unit(question.metric)}, paired by seed. "
        f"AUBC: {OUTCOMES['aubc']}; final: {OUTCOMES['final']}. The interval is Student's, 95 %. Effect: mean / "
        "standard deviation of the differences. P(better): how often a single run of the strategy beats a single run "
        f"of {baseline}. p: {question.test} test; Holm: corrected over the comparisons of the data set and outcome; "
        "equivalence: two one-sided t tests within the margin, Holm. Seeds to decide: approximate.",
        ("strategy", "outcome", "difference", "95 % interval", "seeds won", "effect", "P(better)", "p", "p, Holm",
         "p, equivalence", "verdict", "seeds to decide"),
        grouped(order, row_of), analysis.verdicts,
    )  # fmt: skip


def _efficiency(analysis: Analysis) -> Table:
    def amount(row: Mapping[str, Any], name: str) -> str:
        digits = 2 if "ratio" in name else 0
        median, low, high = (
            "> budget" if np.isinf(row[end]) else number(row[end], digits)
            for end in (name, f"{name}_low", f"{name}_high")
        )
        return median if np.isnan(row[f"{name}_low"]) else f"{median} ({low} to {high})"

    def row_of(row: Mapping[str, Any]) -> list[str]:
        amounts = [amount(row, name) for name in ("labels", "labels_ratio", "masks", "masks_ratio")]
        return [shown(row["strategy"]), f"{row['reached']} of {row['seeds']}", *amounts]

    return Table(
        "efficiency", "Label efficiency",
        f"Labels and masks at which the {LABELS[analysis.question.metric]} first reaches the final value of "
        f"{shown(analysis.question.baseline)} with the same seed, and their ratio to what the baseline needs. Medians "
        "over seeds by Kaplan and Meier, so that seeds that never reach it count as such, with 95 % intervals "
        "(Brookmeyer and Crowley); > budget: beyond what was spent.",
        ("strategy", "seeds that reach it", "labels", "ratio", "masks", "ratio of masks"),
        grouped(analysis.efficiency, row_of), analysis.efficiency,
    )  # fmt: skip


def _test_set(analysis: Analysis) -> Table:
    frame = analysis.test_set
    metric = frame["metric"].iloc[0] if len(frame) else "accuracy"
    scale = factor(metric)

    def row_of(row: Mapping[str, Any]) -> list[str]:
        intervals = [
            interval_text(scale * row[f"difference_{source}_low"], scale * row[f"difference_{source}_high"])
            for source in SOURCES
        ]
        digits = 3 if metric == "nll" else 1
        return [shown(row["strategy"]), number(scale * row["value"], digits),
                number(scale * row["difference"], sign=True),
                *intervals, str(row["groups"]), str(row["samples"])]  # fmt: skip

    return Table(
        "test_set", "The test set counts too",
        f"Final {LABELS.get(metric, metric)}, and its difference to {shown(analysis.question.baseline)} in "
        f"{unit(metric)} with 95 % intervals: for other seeds, for another test set (groups, such as patients, drawn "
        "anew), and for both.",
        ("strategy", f"value{'' if metric == 'nll' else ', %'}", "difference", "other seeds", "other test set", "both",
         "groups", "samples"),
        grouped(frame, row_of), frame,
    )  # fmt: skip


def _classes(analysis: Analysis, classes: ClassNames) -> Table:
    rows = analysis.estimates[analysis.estimates["metric"].str.contains("[", regex=False)]
    parts = rows["metric"].str.extract(r"(?P<rate>\w+)\[(?P<label>\d+)\]").astype({"label": int})
    named = [classes.name(*row) for row in zip(rows["dataset"], parts["label"], strict=True)]
    metrics = parts.assign(metric=rows["metric"]).drop_duplicates().sort_values(["rate", "label"])
    datasets = sorted(rows["dataset"].unique())
    groups = tuple(
        (shown(key["dataset"]), [
            [shown(strategy), *(spread(100 * by.get(m, (np.nan,) * 2)[0], 100 * by.get(m, (np.nan,) * 2)[1])
                                for m in metrics["metric"])]
            for strategy, by in (
                (inner["strategy"], dict(zip(own["metric"], zip(own["mean"], own["sd"], strict=True), strict=True)))
                for inner, own in split(cell, ["strategy"])
            )
        ])
        for key, cell in split(rows, ["dataset"])
    )  # fmt: skip
    pairs = zip(metrics["rate"], metrics["label"], strict=True)
    headings = [f"{rate}, {classes.shared(datasets, k)}" for rate, k in pairs]
    return Table(
        "classes", "Sensitivity and specificity per class",
        f"Mean ± standard deviation over seeds after the last round, in percent.{classes.legend(datasets)}",
        ("strategy", *headings), groups, rows.assign(class_name=named),
    )  # fmt: skip


def matrix_rows(matrix: pd.DataFrame, text_of: Any) -> list[list[str]]:
    """Return the rows of a square matrix of strategies, each number as the text that `text_of` makes of it."""
    return [[shown(name), *map(text_of, row)] for name, row in zip(matrix.index, matrix.to_numpy(), strict=True)]


def _penalties(analysis: Analysis) -> Table:
    frame = analysis.penalties
    groups: Iterable[tuple[str, list[list[str]]]] = ()
    names: list[str] = []
    if len(frame):
        matrices = {
            "plain": penalty_matrix(frame),
            "after Holm over all pairs and budgets": penalty_matrix(frame, "penalty_holm"),
        }
        names = list(matrices["plain"].columns)
        groups = [
            (heading, [*matrix_rows(m, number), ["beaten on average (lower is better)", *map(number, m.mean())]])
            for heading, m in matrices.items()
        ]
    seeds = int(analysis.of_question(analysis.curves).groupby(["dataset", "strategy"])["seed"].nunique().max())
    few = f" {seeds} seed{'s' * (seeds != 1)} can hardly show any: a 0 does not mean that two strategies are equal."
    return Table(
        "penalties", "Pairwise wins",
        "The share of budgets at which the strategy of the row beats the one of the column (paired t test per budget, "
        f"p ≤ 0.05), summed over {frame['dataset'].nunique()} data set{'s' * (frame['dataset'].nunique() != 1)}."
        f"{few if seeds < exact_floor(1) else ''}",
        ("beats →", *map(shown, names)), tuple(groups), frame,
    )  # fmt: skip


def _ranks(analysis: Analysis) -> Table:
    test, stability = analysis.ranks, analysis.stability
    if test is None or test.reason or stability is None:
        return Table("ranks", "Ranks", "", (), (), pd.DataFrame())
    ranks = test.ranks.sort_values(kind="stable")
    first = stability.shares[1] if 1 in stability.shares else pd.Series(np.nan, index=ranks.index)
    rows = [[shown(name), number(rank), percent(first.get(name, np.nan))] for name, rank in ranks.items()]
    tau = f"{number(stability.tau)} ({interval_text(stability.tau_low, stability.tau_high, sign=False)})"
    return Table(
        "ranks", "Ranks over data sets",
        f"Average rank of the AUBC over {len(test.datasets)} data sets, 1 is the best. Friedman's test: χ² = "
        f"{number(test.statistic)}, p = {number(test.p, 4)}. Ranks that differ by {number(test.critical_difference)} "
        f"or more differ significantly (Nemenyi). Kendall's τ between this ranking and those of resampled "
        f"seeds: {tau}.",
        ("strategy", "average rank", "first among resampled seeds"), (("", rows),),
        ranks.rename("rank").rename_axis("strategy").reset_index(),
    )  # fmt: skip

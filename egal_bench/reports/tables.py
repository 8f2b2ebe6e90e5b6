"""The tables of the report, each once, as cells of text: for the page, for LaTeX and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.reports.analysis import LABELS, OUTCOMES, PRIMARY, SHOWN_METRICS, Analysis, factor, unit
from egal_bench.reports.names import latex, markdown, number, shown
from egal_bench.statistics.outcomes import split
from egal_bench.statistics.penalty import penalty_matrix
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
        """Return the numbers as CSV, names as they are."""
        return self.raw.to_csv(index=False)

    def markdown(self) -> str:
        """Return the table in Markdown, with the data set as the first column where there are groups."""
        header, rows = self._flat()
        lines = [header, ["---"] * len(header), *([markdown(cell) for cell in row] for row in rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}\n\n{markdown(self.note)}\n"

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


def main_tables(analysis: Analysis) -> list[Table]:
    """Return the tables of results that have any row."""
    tables = [
        _results(analysis), _verdicts(analysis), _efficiency(analysis), _test_set(analysis), _classes(analysis),
        _penalties(analysis), _ranks(analysis),
    ]  # fmt: skip
    return [table for table in tables if any(rows for _, rows in table.groups)]


def diagnostic_tables(analysis: Analysis, frames: Mapping[str, pd.DataFrame]) -> list[Table]:
    """Return the tables of the diagnostics that have any row."""
    tables = [
        _purchases(frames["purchases"]), _class_shares(frames["class_shares"]),
        _overlap(frames["overlap"]), _calibration(frames["calibration"]), *_confusions(frames["confusion"]),
        _time(frames["time"]),
    ]  # fmt: skip
    return [table for table in tables if any(rows for _, rows in table.groups)]


def _grouped(frame: pd.DataFrame, row_of: Any) -> tuple[tuple[str, list[list[str]]], ...]:
    """Return (data set, rows of cells), where `row_of` turns a row of the frame into cells."""
    return tuple(
        (shown(key["dataset"]), [row_of(row) for row in rows.to_dict("records")])
        for key, rows in split(frame, ["dataset"])
    )


def _ordered(frame: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Return the rows with the baseline first, then by name."""
    places = {name: i for i, name in enumerate(analysis.strategies)}
    return frame.sort_values("strategy", key=lambda names: names.map(places), kind="stable")


def _spread(mean: float, sd: float, digits: int = 1) -> str:
    return number(mean, digits) if np.isnan(sd) else f"{number(mean, digits)} ± {number(sd, digits)}"


def _range(low: float, high: float, digits: int = 2, *, sign: bool = True) -> str:
    return "–" if np.isnan(low) else f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def _percent(share: float) -> str:
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
            texts.append(_spread(scale * cell["mean"], scale * cell["sd"], digits) if cell else "–")
        area, scale = cells.get((*key, question.metric, "aubc")), factor(question.metric)
        texts.append(_spread(scale * area["mean"], scale * area["sd"]) if area else "–")
        low, high = (scale * area["iqm_low"], scale * area["iqm_high"]) if area else (np.nan, np.nan)
        interval = "" if np.isnan(low) else f" ({_range(low, high, 1, sign=False)})"
        texts.append(f"{number(scale * area['iqm'], 1)}{interval}" if area else "–")
        return texts

    shown_metrics = [f"{LABELS[name]}{'' if name == 'nll' else ', %'}" for name in metrics]
    main = LABELS[question.metric]
    return Table(
        "results", "Results", "Mean ± standard deviation over seeds after the last round. AUBC: the metric averaged "
        "over the labels spent. IQM: interquartile mean over seeds, with a 95 % interval. Masks: the ROIs that a run "
        "looked at, those of the pool included.",
        ("strategy", "seeds", "labels", "masks", *shown_metrics, f"AUBC of {main}", "IQM of that AUBC"),
        _grouped(_ordered(rows.reset_index(), analysis), row_of), analysis.estimates,
    )  # fmt: skip


def _verdicts(analysis: Analysis) -> Table:
    question = analysis.question
    scale, baseline = factor(question.metric), shown(question.baseline)
    frame = analysis.of_question(analysis.verdicts)
    order = frame.assign(first=frame["outcome"] != PRIMARY).sort_values(["dataset", "first"], kind="stable")

    def row_of(row: Mapping[str, Any]) -> list[str]:
        return [
            shown(row["strategy"]), "AUBC" if row["outcome"] == PRIMARY else "final",
            number(scale * row["difference"], sign=True), _range(scale * row["low"], scale * row["high"]),
            f"{row['won']:.0f} of {row['pairs']}" if row["pairs"] else "–", number(row["effect"], sign=True),
            _percent(row["improvement"]), number(row["p"], 4), number(row["p_holm"], 4),
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
        _grouped(order, row_of), analysis.verdicts,
    )  # fmt: skip


def _efficiency(analysis: Analysis) -> Table:
    def row_of(row: Mapping[str, Any]) -> list[str]:
        amounts = [
            "> budget" if np.isinf(row[name]) else number(row[name], 0 if "ratio" not in name else 2)
            for name in ("labels", "labels_ratio", "masks", "masks_ratio")
        ]
        return [shown(row["strategy"]), f"{row['reached']} of {row['seeds']}", *amounts]

    return Table(
        "efficiency", "Label efficiency",
        f"Labels and masks at which the {LABELS[analysis.question.metric]} first reaches the final value of "
        f"{shown(analysis.question.baseline)} with the same seed; medians over seeds (Kaplan-Meier, so that seeds that "
        "never reach it count as such), and their ratio to what the baseline needs.",
        ("strategy", "seeds that reach it", "labels", "ratio", "masks", "ratio of masks"),
        _grouped(analysis.efficiency, row_of), analysis.efficiency,
    )  # fmt: skip


def _test_set(analysis: Analysis) -> Table:
    frame = analysis.test_set
    metric = frame["metric"].iloc[0] if len(frame) else "accuracy"
    scale = factor(metric)

    def row_of(row: Mapping[str, Any]) -> list[str]:
        intervals = [
            _range(scale * row[f"difference_{source}_low"], scale * row[f"difference_{source}_high"])
            for source in SOURCES
        ]
        return [shown(row["strategy"]), number(scale * row["value"], 1), number(scale * row["difference"], sign=True),
                *intervals, str(row["groups"]), str(row["samples"])]  # fmt: skip

    return Table(
        "test_set", "The test set counts too",
        f"Final {LABELS.get(metric, metric)}, and its difference to {shown(analysis.question.baseline)} in "
        f"{unit(metric)} with 95 % intervals: for other seeds, for another test set (groups, such as patients, drawn "
        "anew), and for both.",
        ("strategy", "value, %", "difference", "other seeds", "other test set", "both", "groups", "samples"),
        _grouped(frame, row_of), frame,
    )  # fmt: skip


def _classes(analysis: Analysis) -> Table:
    rows = analysis.estimates[analysis.estimates["metric"].str.contains("[", regex=False)]
    metrics = sorted(rows["metric"].unique(), key=lambda name: (name.partition("[")[0], int(name.split("[")[1][:-1])))
    groups = tuple(
        (shown(key["dataset"]), [
            [shown(strategy), *(_spread(100 * by.get(m, (np.nan,) * 2)[0], 100 * by.get(m, (np.nan,) * 2)[1])
                                for m in metrics)]
            for strategy, by in (
                (inner["strategy"], dict(zip(own["metric"], zip(own["mean"], own["sd"], strict=True), strict=True)))
                for inner, own in split(cell, ["strategy"])
            )
        ])
        for key, cell in split(rows, ["dataset"])
    )  # fmt: skip
    return Table(
        "classes", "Sensitivity and specificity per class",
        "Mean ± standard deviation over seeds after the last round, in percent; classes by their number.",
        ("strategy", *metrics), groups, rows,
    )  # fmt: skip


def _matrix(matrix: pd.DataFrame, text_of: Any) -> list[list[str]]:
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
            (heading, [*_matrix(m, number), ["mean penalty (lower is better)", *map(number, m.mean())]])
            for heading, m in matrices.items()
        ]
    return Table(
        "penalties", "Penalty matrix",
        "The share of budgets at which the strategy of the row beats the one of the column (paired t test per budget, "
        f"p ≤ 0.05), summed over {frame['dataset'].nunique()} data set{'s' * (frame['dataset'].nunique() != 1)}.",
        ("beats →", *map(shown, names)), tuple(groups), frame,
    )  # fmt: skip


def _ranks(analysis: Analysis) -> Table:
    test, stability = analysis.ranks, analysis.stability
    if test is None or test.reason or stability is None:
        return Table("ranks", "Ranks", "", (), (), pd.DataFrame())
    ranks = test.ranks.sort_values(kind="stable")
    first = stability.shares[1] if 1 in stability.shares else pd.Series(np.nan, index=ranks.index)
    rows = [[shown(name), number(rank), _percent(first.get(name, np.nan))] for name, rank in ranks.items()]
    tau = f"{number(stability.tau)} ({_range(stability.tau_low, stability.tau_high, sign=False)})"
    return Table(
        "ranks", "Ranks over data sets",
        f"Average rank of the AUBC over {len(test.datasets)} data sets, 1 is the best. Friedman's test: χ² = "
        f"{number(test.statistic)}, p = {number(test.p, 4)}. Ranks that differ by {number(test.critical_difference)} "
        f"or more differ significantly (Nemenyi). Kendall's τ between this ranking and those of resampled "
        f"seeds: {tau}.",
        ("strategy", "average rank", "first among resampled seeds"), (("", rows),),
        ranks.rename("rank").rename_axis("strategy").reset_index(),
    )  # fmt: skip


def _purchases(frame: pd.DataFrame) -> Table:
    def row_of(row: Mapping[str, Any]) -> list[str]:
        return [
            shown(row["strategy"]), str(row["bought"]), _percent(row["tied"]), _percent(row["without_roi"]),
            number(row["roi_area"], 0), _percent(row["dice_zero"]),
            number(row["misalignment_roi_correlation"], sign=True),
        ]  # fmt: skip

    return Table(
        "purchases", "What each strategy bought",
        "After the initial set, over all seeds. Tied: the score equals that of a sample that was not bought, so a "
        "random order decided. ROI area: mean pixels of the ROIs of bought samples. Dice 0: Grad-CAM and ROI share no "
        "pixel. Correlation: Spearman's, of the misalignment D with the ROI's area.",
        ("strategy", "labels bought", "tied", "without ROI", "ROI area, pixels", "Dice exactly 0", "D with ROI area"),
        _grouped(frame, row_of), frame,
    )  # fmt: skip


def _class_shares(frame: pd.DataFrame) -> Table:
    labels = sorted(frame["label"].unique())
    groups = []
    for key, cell in split(frame, ["dataset"]):
        initial = cell.groupby("label")["initial"].first()
        rows = [["initial sets (random)", *(_percent(initial.get(label, 0.0)) for label in labels)]]
        rounds = cell.groupby("strategy")["round"].nunique()
        means = cell.groupby(["strategy", "label"])["share"].sum().div(rounds, level="strategy")
        rows += [
            [shown(name), *(_percent(means.get((name, label), 0.0)) for label in labels)]
            for name in sorted(cell["strategy"].unique())
        ]
        groups.append((shown(key["dataset"]), rows))
    return Table(
        "class_shares", "Classes bought",
        "Mean share of each class among the purchases of a round, beside the initial sets, which are random draws from "
        "the pool. The CSV file has every round.",
        ("strategy", *(f"class {label}" for label in labels)), tuple(groups), frame,
    )  # fmt: skip


def _overlap(frame: pd.DataFrame) -> Table:
    names = sorted({*frame["first"], *frame["second"]})
    groups = []
    for key, cell in split(frame, ["dataset"]):
        matrix = pd.DataFrame(np.nan, index=names, columns=names)
        for a, b, value in zip(cell["first"], cell["second"], cell["jaccard"], strict=True):
            matrix.loc[a, b] = matrix.loc[b, a] = value
        groups.append((shown(key["dataset"]), _matrix(matrix, number)))
    return Table(
        "overlap", "Overlap of purchases",
        "Jaccard overlap |A ∩ B| / |A ∪ B| of what two strategies bought after the initial set, mean over seeds.",
        ("strategy", *map(shown, names)), tuple(groups), frame,
    )  # fmt: skip


def _calibration(frame: pd.DataFrame) -> Table:
    bins = sorted(frame["bin"].unique())

    def rows_of(cell: pd.DataFrame) -> list[list[str]]:
        rows = []
        for key, own in split(cell, ["strategy"]):
            by = dict(zip(own["bin"], own["accuracy"] - own["confidence"], strict=True))
            rows.append([shown(key["strategy"]), *(number(100 * by.get(b, np.nan), 0, sign=True) for b in bins)])
        return rows

    groups = tuple((shown(key["dataset"]), rows_of(cell)) for key, cell in split(frame, ["dataset"]))
    return Table(
        "calibration", "Calibration",
        "Accuracy minus mean confidence of the final models, in points, by confidence; negative: overconfident.",
        ("strategy", *(f"{10 * b} to {10 * b + 10} %" for b in bins)), groups, frame,
    )  # fmt: skip


def _confusions(frame: pd.DataFrame) -> list[Table]:
    tables = []
    for i, (key, cell) in enumerate(split(frame, ["dataset"])):
        labels = sorted(cell["label"].unique())
        groups = []
        for inner, own in split(cell, ["strategy"]):
            matrix = own.pivot(index="label", columns="predicted", values="samples").reindex(
                index=labels, columns=labels
            )
            rows = [[f"class {name}", *map(str, row)] for name, row in zip(labels, matrix.to_numpy(), strict=True)]
            groups.append((shown(inner["strategy"]), rows))
        tables.append(Table(
            f"confusion_{i + 1}", f"Confusion matrices: {shown(key['dataset'])}",
            "Final models, test samples summed over seeds; rows are the true classes.",
            ("true class", *(f"taken for {label}" for label in labels)), tuple(groups), cell,
        ))  # fmt: skip
    return tables


def _time(frame: pd.DataFrame) -> Table:
    def row_of(row: Mapping[str, Any]) -> list[str]:
        seconds = [row[name] for name in ("train_s", "score_s", "eval_s")]
        return [shown(row["strategy"]), *(number(value, 1) for value in seconds), number(sum(seconds), 1)]

    return Table(
        "time", "Where the time went", "Mean seconds of a run, all rounds together.",
        ("strategy", "training", "scoring the pool", "evaluation", "sum"), _grouped(frame, row_of), frame,
    )  # fmt: skip

"""The tables of the diagnostics: what strategies bought, how the final models err, and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.reports.classes import ClassNames
from egal_bench.reports.joining import Joined
from egal_bench.reports.names import number, shown
from egal_bench.reports.pool_diagnostics import PoolDiagnostics
from egal_bench.reports.tables import Table, complete, grouped, interval_text, matrix_rows, percent
from egal_bench.statistics.outcomes import split

FOR_THE_REPORT = "For the report only: no strategy has seen these ROIs, and they count as no masks."


def diagnostic_tables(
    joined: Joined, frames: Mapping[str, pd.DataFrame], pool: PoolDiagnostics, classes: ClassNames
) -> list[Table]:
    """Return the tables of the diagnostics that have any row; oracles are marked."""
    tables = [
        _purchases(frames["purchases"]), _class_shares(frames["class_shares"], classes), _overlap(frames["overlap"]),
        _pool(pool.pool), _distances(pool.distances), _predictions(pool.predictions),
        _calibration(frames["calibration"]), *_confusions(frames["confusion"], classes), _time(frames["time"]),
    ]  # fmt: skip
    return complete(tables, joined.oracles)


def _purchases(frame: pd.DataFrame) -> Table:
    def row_of(row: Mapping[str, Any]) -> list[str]:
        return [
            shown(row["strategy"]), str(row["bought"]), percent(row["tied"]), percent(row["without_roi"]),
            number(row["roi_area"], 0), percent(row["dice_zero"]),
            number(row["misalignment_roi_correlation"], sign=True),
        ]  # fmt: skip

    return Table(
        "purchases", "What each strategy bought",
        "After the initial set, over all seeds. Tied: the score equals that of a sample that was not bought, so a "
        "random order decided. ROI area: mean pixels of the ROIs of bought samples. Dice 0: Grad-CAM and ROI share no "
        "pixel. Correlation: Spearman's, of the misalignment D with the ROI's area.",
        ("strategy", "labels bought", "tied", "without ROI", "ROI area, pixels", "Dice exactly 0", "D with ROI area"),
        grouped(frame, row_of), frame,
    )  # fmt: skip


def _class_shares(frame: pd.DataFrame, classes: ClassNames) -> Table:
    datasets = sorted(frame["dataset"].unique())
    labels = sorted(frame["label"].unique())
    groups = []
    for key, cell in split(frame, ["dataset"]):
        initial = cell.groupby("label")["initial"].first()
        rows = [["initial sets (random)", *(percent(initial.get(label, 0.0)) for label in labels)]]
        rounds = cell.groupby("strategy")["round"].nunique()
        means = cell.groupby(["strategy", "label"])["share"].sum().div(rounds, level="strategy")
        rows += [
            [shown(name), *(percent(means.get((name, label), 0.0)) for label in labels)]
            for name in sorted(cell["strategy"].unique())
        ]
        groups.append((shown(key["dataset"]), rows))
    return Table(
        "class_shares", "Classes bought",
        "Mean share of each class among the purchases of a round, beside the initial sets, which are random draws from "
        f"the pool. The CSV file has every round.{classes.legend(datasets)}",
        ("strategy", *(classes.shared(datasets, label) for label in labels)), tuple(groups),
        frame.assign(class_name=_named(frame, "label", classes)),
    )  # fmt: skip


def _named(frame: pd.DataFrame, column: str, classes: ClassNames) -> list[str]:
    """Return the names of the classes whose numbers stand in `column`."""
    return [classes.name(*row) for row in zip(frame["dataset"], frame[column], strict=True)]


def _overlap(frame: pd.DataFrame) -> Table:
    names = sorted({*frame["first"], *frame["second"]})
    groups = []
    for key, cell in split(frame, ["dataset"]):
        matrix = pd.DataFrame(np.nan, index=names, columns=names)
        for a, b, value in zip(cell["first"], cell["second"], cell["jaccard"], strict=True):
            matrix.loc[a, b] = matrix.loc[b, a] = value
        groups.append((shown(key["dataset"]), matrix_rows(matrix, number)))
    return Table(
        "overlap", "Overlap of purchases",
        "Jaccard overlap |A ∩ B| / |A ∪ B| of what two strategies bought after the initial set, mean over seeds.",
        ("strategy", *map(shown, names)), tuple(groups), frame,
    )  # fmt: skip


def _pool(frame: pd.DataFrame) -> Table:
    def row_of(row: Mapping[str, Any]) -> list[str]:
        ends = (row["roi_area_correlation_low"], row["roi_area_correlation_high"])
        return [
            shown(row["strategy"]), number(row["samples"], 0), percent(row["without_roi"]), percent(row["dice_zero"]),
            percent(row["dice_zero_bought"]), number(row["roi_area_correlation"], sign=True), interval_text(*ends),
        ]  # fmt: skip

    return Table(
        "pool", "The pool at the last recorded query",
        "A random subset of the samples that were not bought, means over seeds. Dice 0: Grad-CAM and ROI share no "
        "pixel, in the pool and among the bought samples. Correlation: Spearman's, of the misalignment D with the "
        f"ROI's area over the samples with ROI, with its 95 % interval over seeds. {FOR_THE_REPORT}",
        ("strategy", "samples", "without ROI", "Dice exactly 0, pool", "Dice exactly 0, bought", "D with ROI area",
         "95 % interval"),
        grouped(frame, row_of), frame,
    )  # fmt: skip


def _per_round(
    frame: pd.DataFrame, text_of: Callable[[Any], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, list[list[str]]], ...]]:
    """Return the header and the groups of a table with a row per strategy and a column per recorded query."""
    rounds = sorted(frame["round"].unique())
    groups = []
    for key, cell in split(frame, ["dataset"]):
        rows = []
        for inner, own in split(cell, ["strategy"]):
            texts = {row.round: text_of(row) for row in own.itertuples()}
            rows.append([shown(inner["strategy"]), *(texts.get(number_, "–") for number_ in rounds)])
        groups.append((shown(key["dataset"]), rows))
    return ("strategy", *(f"query {number_}" for number_ in rounds)), tuple(groups)


def _distances(frame: pd.DataFrame) -> Table:
    def text_of(row: Any) -> str:
        return f"{number(row.ratio)} ({row.distance_bought:.3g} : {row.distance:.3g})"

    header, groups = _per_round(frame, text_of)
    return Table(
        "distances", "Distance to the nearest labelled sample",
        "Ratio of two mean Euclidean distances in pooled features: of the bought samples, and of a random subset of "
        "those not bought; in brackets the two. Above 1: the strategy buys far from what is labelled.",
        header, groups, frame,
    )  # fmt: skip


def _predictions(frame: pd.DataFrame) -> Table:
    def text_of(row: Any) -> str:
        interval = "" if np.isnan(row.low) else f" ({interval_text(row.low, row.high)})"
        return f"{number(row.correlation, sign=True)}{interval}"

    header, groups = _per_round(frame, text_of)
    return Table(
        "predicted_misalignment", "Predicted and true misalignment",
        "Spearman's correlation, over the samples of the pool with ROI that were not bought, of the misalignment that "
        "a strategy has predicted from the labelled set with the true one; mean and 95 % interval over seeds. "
        f"{FOR_THE_REPORT}",
        header, groups, frame,
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
        "Accuracy minus mean confidence of the final models, in points, by confidence; negative: overconfident. The "
        "CSV file has the accuracies with Wilson's 95 % intervals.",
        ("strategy", *(f"{10 * b} to {10 * b + 10} %" for b in bins)), groups, frame,
    )  # fmt: skip


def _confusions(frame: pd.DataFrame, classes: ClassNames) -> list[Table]:
    tables = []
    for i, (key, cell) in enumerate(split(frame, ["dataset"])):
        labels = sorted(cell["label"].unique())
        names = [shown(classes.name(key["dataset"], label)) for label in labels]
        groups = []
        for inner, own in split(cell, ["strategy"]):
            matrix = own.pivot(index="label", columns="predicted", values="samples").reindex(
                index=labels, columns=labels
            )
            rows = [[name, *map(str, row)] for name, row in zip(names, matrix.to_numpy(), strict=True)]
            groups.append((shown(inner["strategy"]), rows))
        tables.append(Table(
            f"confusion_{i + 1}", f"Confusion matrices: {shown(key['dataset'])}",
            "Final models, test samples summed over seeds; rows are the true classes.",
            ("true class", *(f"taken for {name}" for name in names)), tuple(groups),
            cell.assign(class_name=_named(cell, "label", classes),
                        predicted_name=_named(cell, "predicted", classes)),
        ))  # fmt: skip
    return tables


def _time(frame: pd.DataFrame) -> Table:
    def row_of(row: Mapping[str, Any]) -> list[str]:
        seconds = [row[name] for name in ("train_s", "score_s", "eval_s")]
        return [shown(row["strategy"]), *(number(value, 1) for value in seconds), number(sum(seconds), 1)]

    return Table(
        "time", "Where the time went", "Mean seconds of a run, all rounds together.",
        ("strategy", "training", "scoring the pool", "evaluation", "sum"), grouped(frame, row_of), frame,
    )  # fmt: skip

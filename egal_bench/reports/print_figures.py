"""The figures for print: PDF with embedded fonts and PNG, one or two columns wide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from egal_bench.files import replacing
from egal_bench.reports.analysis import Analysis
from egal_bench.reports.figures import BASELINE_STYLE, COLOURS, DASHES
from egal_bench.reports.names import shown, titled
from egal_bench.reports.question import LABELS, PRIMARY, factor, unit
from egal_bench.statistics.outcomes import split
from egal_bench.statistics.penalty import penalty_matrix
from egal_bench.statistics.ranks import cliques

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
SETTINGS: dict[str, Any] = {"pdf.fonttype": 42, "font.size": 7, "axes.linewidth": 0.6, "legend.frameon": False}


def draw_figures(analysis: Analysis, folder: Path) -> list[str]:
    """Write the figures that the runs allow to `folder`; return their names."""
    figures = {
        "learning_curves": _learning_curves(analysis),
        "differences": _differences(analysis),
        "penalties": _penalties(analysis),
        "critical_differences": _critical_differences(analysis),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save(figure, folder, name)
    return list(drawn)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure to `folder` as NAME.pdf, with fonts embedded, and as NAME.png."""
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # what it has placed stays; it need not work again for each format
        for ending in (".pdf", ".png"):
            with replacing(folder / f"{name}{ending}") as temporary:
                figure.savefig(temporary, dpi=200)


def _figure(width: float, height: float) -> Figure:
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        return Figure(figsize=(width, height), layout="constrained")


def label(name: object, length: int = 34) -> str:
    """Return a name without mathtext, cut to the width of a column."""
    text = shown(name)
    return (text if len(text) <= length else f"{text[: length - 1]}…").replace("$", r"\$")


def _styles(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """Return colour and dashes of each strategy; both change from one to the next, and 24 pairs differ."""
    names = [name for name in analysis.strategies if name != analysis.question.baseline]
    k = len(COLOURS)
    styles = {
        name: {"color": COLOURS[i % k], "linestyle": DASHES[(i + i // k) % len(DASHES)]} for i, name in enumerate(names)
    }
    return {analysis.question.baseline: BASELINE_STYLE, **styles}


def _learning_curves(analysis: Analysis) -> Figure | None:
    table = analysis.of_question(analysis.curve_estimates)
    datasets = sorted(table["dataset"].unique())
    if not datasets:
        return None
    styles, oracles = _styles(analysis), analysis.joined.oracles
    scale, columns = factor(analysis.question.metric), min(3, len(datasets))
    rows, legend_rows = math.ceil(len(datasets) / columns), math.ceil(len(styles) / 4)
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = _figure(TWO_COLUMNS, 2.3 * rows + 0.14 * legend_rows + 0.2)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (key, cell) in zip(axes, split(table, ["dataset"]), strict=False):
            for inner, curve in split(cell, ["strategy"]):
                curve, style = curve.sort_values("labels"), styles[inner["strategy"]]
                axis.plot(curve["labels"], scale * curve["mean"], linewidth=1, marker="o", markersize=2, **style)
                low, high = curve["mean"] - curve["sd"], curve["mean"] + curve["sd"]
                if len(styles) <= 8:
                    axis.fill_between(
                        curve["labels"], scale * low, scale * high, color=style["color"], alpha=0.12, lw=0
                    )
            axis.set_title(label(key["dataset"]), fontsize=8)
            axis.set_xlabel("labels")
            axis.spines[["top", "right"]].set_visible(False)
        for axis in axes[len(datasets) :]:
            axis.set_visible(False)
        axes[0].set_ylabel(f"{LABELS[analysis.question.metric]}{'' if scale == 1 else ', %'}")
        handles = [
            axes[0].plot([], [], label=label(titled(name, oracles)), **style)[0] for name, style in styles.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=6)
    return figure


def _differences(analysis: Analysis) -> Figure | None:
    table = analysis.of_question(analysis.verdicts, PRIMARY).dropna(subset=["difference"])
    datasets = sorted(table["dataset"].unique())
    if not datasets:
        return None
    question, oracles, scale = analysis.question, analysis.joined.oracles, factor(analysis.question.metric)
    counts = [int((table["dataset"] == name).sum()) for name in datasets]
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = _figure(ONE_COLUMN, sum(0.17 * n + 0.45 for n in counts) + 0.3)
        axes = figure.subplots(len(datasets), 1, squeeze=False, sharex=True, height_ratios=[n + 1 for n in counts])
        for axis, (key, cell) in zip(axes.ravel(), split(table, ["dataset"]), strict=True):
            cell = cell.sort_values("difference")
            mean, y = scale * cell["difference"].to_numpy(), np.arange(len(cell))
            half = np.nan_to_num(mean - scale * cell["low"].to_numpy())
            axis.axvspan(
                -scale * question.margin / 100, scale * question.margin / 100, color="#999999", alpha=0.2, lw=0
            )
            axis.axvline(0, color="#4d4d4d", linewidth=0.6)
            axis.errorbar(mean, y, xerr=half, fmt="o", color=COLOURS[0], markersize=3, linewidth=1)
            axis.set_yticks(
                y,
                [
                    f"{label(titled(n, oracles), 24)} ({v})"
                    for n, v in zip(cell["strategy"], cell["verdict"], strict=True)
                ],
            )
            axis.set_title(label(key["dataset"]), fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        axes[-1, 0].set_xlabel(
            f"AUBC of {LABELS[question.metric]} − {label(question.baseline, 12)}, {unit(question.metric)}"
        )
    return figure


def _penalties(analysis: Analysis) -> Figure | None:
    if len(analysis.strategies) < 2 or not analysis.penalties["budgets"].any():
        return None
    matrix = penalty_matrix(analysis.penalties)
    names = [label(titled(str(name), analysis.joined.oracles), 26) for name in matrix.columns]
    shares, k = matrix.to_numpy(np.float64), len(matrix)
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        side = ONE_COLUMN if k <= 10 else TWO_COLUMNS
        figure = _figure(side, side)
        axis = figure.subplots()
        axis.imshow(shares, cmap="Blues", vmin=0)
        axis.set_xticks(range(k), names, rotation=90)
        axis.set_yticks(range(k), names)
        dark = np.nanmax(shares) / 2
        for i, j in np.ndindex(k, k):
            value = shares[i, j]
            if i != j and np.isfinite(value):
                axis.text(
                    j, i, f"{value:.1f}", ha="center", va="center", fontsize=5, color="w" if value > dark else "k"
                )
        axis.set_title("the row beats the column: share of budgets", fontsize=7)
    return figure


def _critical_differences(analysis: Analysis) -> Figure | None:
    test = analysis.ranks
    if test is None or test.reason:
        return None
    ranks = test.ranks.sort_values(kind="stable")
    bars = cliques(test)
    k = len(ranks)
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = _figure(TWO_COLUMNS, 0.16 * k + 0.09 * len(bars) + 0.9)
        axis = figure.subplots()
        axis.plot(ranks.to_numpy(), np.arange(k), "o", color=COLOURS[0], markersize=3)
        axis.set_yticks(np.arange(k), [label(titled(name, analysis.joined.oracles)) for name in ranks.index])
        for i, bar in enumerate(bars):
            y = k - 0.3 + 0.5 * i
            axis.plot([ranks[bar[0]], ranks[bar[-1]]], [y, y], color="#4d4d4d", linewidth=2)
        axis.invert_yaxis()
        axis.set_xlabel(
            f"average rank over {len(test.datasets)} data sets; strategies that a bar joins do not differ "
            f"significantly (critical difference {test.critical_difference:.2f})"
        )
        axis.spines[["top", "right"]].set_visible(False)
    return figure

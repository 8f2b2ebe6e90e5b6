"""The figure of a comparison: learning curves of all strategies, and of each one against the baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egal_bench.files import replacing
from egal_bench.reports.names import titled

METRICS = {  # columns of `rounds`: label of the axis, and the factor of its unit
    "accuracy": ("test accuracy, %", 100.0),
    "balanced_accuracy": ("balanced test accuracy, %", 100.0),
    "macro_auc": ("macro AUC on the test set, %", 100.0),
    "macro_f1": ("macro F1 on the test set, %", 100.0),
    "nll": ("NLL on the test set, nats", 1.0),
    "ece": ("ECE on the test set, %", 100.0),
    "test_dice": ("Dice of Grad-CAM and ROI on the test set, %", 100.0),
}
BASELINE_STYLE = {"color": "#4d4d4d", "linestyle": "-"}
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito, safe for colour-blind eyes
DASHES = ("-", "--", ":", "-.")
COLUMNS = 4  # panels per row
NAME_LENGTH = 34  # characters of a name in a panel's title


def draw_learning_curves(
    rounds: pd.DataFrame, path: Path, metric: str = "accuracy", baseline: str = "random", oracles: Collection[str] = ()
) -> None:
    """Write the figure to `path`, a PNG, and beside it as a PDF.

    Each data set has a panel with the means of all strategies, and one panel per strategy with its mean ± sd over
    seeds beside the baseline's. Where a strategy's masks grow over the rounds, one more panel shows all strategies by
    masks. All panels of a data set share the y axis.

    Args:
        rounds: the `rounds` table.
        path: ends in .png.
        metric: a key of METRICS.
        baseline: the strategy that each panel repeats.
        oracles: strategies to mark as such.
    """
    rounds = rounds.assign(strategy=[titled(name, oracles) for name in rounds.strategy]) if oracles else rounds
    styles = _styles(list(dict.fromkeys(rounds.strategy)), baseline)
    panels = {name: _panels(runs, baseline) for name, runs in rounds.groupby("dataset", sort=False)}
    rows = sum(math.ceil(len(names) / COLUMNS) for names in panels.values())
    columns = min(COLUMNS, max(len(names) for names in panels.values()))
    figure = Figure(
        figsize=(3.1 * columns + 0.6, 2.7 * rows + 0.6 + 0.25 * math.ceil(len(styles) / columns)), layout="constrained"
    )
    grid = iter(figure.subplots(rows, columns, squeeze=False))
    for name, names in panels.items():
        curves = _curves(rounds[rounds.dataset == name], metric)
        axes = [axis for _ in range(math.ceil(len(names) / columns)) for axis in next(grid)]
        _draw_data_set(axes, names, curves, styles, baseline)
        axes[0].set_title(f"{_short(str(name))}\n{_seeds(rounds[rounds.dataset == name])}", fontsize=9)
        axes[0].set_ylabel(METRICS[metric][0])
    handles = [figure.axes[0].plot([], [], label=_short(name), **style)[0] for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for target in (path, path.with_suffix(".pdf")):
        with replacing(target) as temporary:
            figure.savefig(temporary, dpi=130)


def _panels(runs: pd.DataFrame, baseline: str) -> list[str]:
    """Return the panels of a data set: "all", each strategy but the baseline, and "masks" where masks grow."""
    strategies = [name for name in dict.fromkeys(runs.strategy) if name != baseline]
    grows = runs.groupby(["strategy", "seed"]).masks.nunique().max() > 2  # beyond the step from the initial set
    return ["all", *(strategies if len(strategies) > 1 else []), *(["masks"] if grows else [])]


def _draw_data_set(
    axes: list[Axes],
    names: list[str],
    curves: dict[str, pd.DataFrame],
    styles: dict[str, dict[str, Any]],
    baseline: str,
) -> None:
    for axis, name in zip(axes, names, strict=False):
        shown = curves if name in ("all", "masks") else {key: curves[key] for key in (baseline, name) if key in curves}
        for strategy, curve in shown.items():
            x = curve["masks" if name == "masks" else "labels"]
            axis.plot(x, curve["mean"], marker="o", markersize=2.5, linewidth=1.3, **styles[strategy])
            if name not in ("all", "masks") or len(curves) <= 2:
                low, high = curve["mean"] - curve["sd"], curve["mean"] + curve["sd"]
                axis.fill_between(x, low, high, color=styles[strategy]["color"], alpha=0.15, lw=0)
        axis.set_xlabel("masks looked at" if name == "masks" else "labels", fontsize=8)
        if name not in ("all",):
            axis.set_title("by masks, the pool's included" if name == "masks" else _short(name), fontsize=9)
        axis.sharey(axes[0]) if axis is not axes[0] else None
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_visible(False)


def _curves(runs: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """Return per strategy a table by round: labels, masks, and mean and sd of the metric over seeds."""
    factor = METRICS[metric][1]
    return {
        str(name): of_strategy.groupby("round").agg(
            labels=("labels", "mean"), masks=("masks", "mean"),
            mean=(metric, lambda values: factor * values.mean()),
            sd=(metric, lambda values: factor * values.std(ddof=1) if len(values) > 1 else 0.0),
        )
        for name, of_strategy in runs.groupby("strategy", sort=False)
    }  # fmt: skip


def _styles(strategies: list[str], baseline: str) -> dict[str, dict[str, Any]]:
    """Return colour and dashes of each strategy; the combinations repeat only after 24 strategies."""
    combinations: Iterator[dict[str, Any]] = cycle(
        {"color": colour, "linestyle": dash} for dash in DASHES for colour in COLOURS
    )
    return {name: BASELINE_STYLE if name == baseline else next(combinations) for name in strategies}


def _seeds(runs: pd.DataFrame) -> str:
    seeds = runs.seed.nunique()
    return f"means over {seeds} seed{'s' * (seeds != 1)}, {runs.test_size.iloc[0]} test samples"


def _short(name: str) -> str:
    """Return `name` without mathtext, cut to the width of a panel."""
    cut = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
    return cut.replace("$", r"\$")

"""What the interactive charts of the report draw: learning curves, the pool of the queries, and calibration."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from egal_bench.reports.analysis import Analysis
from egal_bench.reports.figures import COLOURS
from egal_bench.reports.names import shown, titled
from egal_bench.reports.question import LABELS, PRIMARY, SHOWN_METRICS, factor
from egal_bench.statistics.outcomes import direction, split

PLOTLY_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SHOWN_AT_FIRST = 8  # strategies in the chart; the others wait behind their check boxes


def charts(analysis: Analysis, points: pd.DataFrame, calibration: pd.DataFrame) -> dict[str, Any]:
    """Return the data of all charts, for JSON.

    Args:
        analysis: gives the curves.
        points: see `PoolDiagnostics`.
        calibration: see `statistics.calibration`.
    """
    return _curves(analysis) | {"pool": _pool(points, analysis), "calibration": _calibration(calibration, analysis)}


def _pool(points: pd.DataFrame, analysis: Analysis) -> list[dict[str, Any]]:
    """Return per data set, strategy and query the entropies and misalignments, of bought samples and of others."""
    return [
        {
            "dataset": shown(key["dataset"]), "strategy": titled(key["strategy"], analysis.joined.oracles),
            "query": int(key["round"]), "seed": int(own["seed"].iloc[0]),
            **{
                name: [[_short(v, 3) for v in rows[column]] for column in ("entropy", "misalignment")]
                for name, rows in (("bought", own[own["bought"]]), ("others", own[~own["bought"]]))
            },
        }
        for key, cell in split(points, ["dataset", "strategy", "round"])
        if len(own := cell.astype({"bought": bool}).dropna(subset=["misalignment"]))
    ]  # fmt: skip


def _calibration(calibration: pd.DataFrame, analysis: Analysis) -> list[dict[str, Any]]:
    """Return per data set and strategy the calibration curve, in percent."""
    names = ("confidence", "accuracy", "low", "high")
    return [
        {"dataset": shown(key["dataset"]), "strategy": titled(key["strategy"], analysis.joined.oracles)}
        | {name: [_short(100 * v, 4) for v in rows[name]] for name in names}
        | {"samples": [int(n) for n in rows["samples"]]}
        for key, rows in split(calibration, ["dataset", "strategy"])
    ]


def _curves(analysis: Analysis) -> dict[str, Any]:
    """Return the values of every seed at every budget, and their IQM with its interval."""
    metrics = [name for name in SHOWN_METRICS if (analysis.curves["metric"] == name).any()]
    order = _by_outcome(analysis)
    styles = {name: i for i, name in enumerate(n for n in analysis.strategies if n != analysis.question.baseline)}
    iqms = _iqms(analysis.curve_estimates)
    differences = _iqms(analysis.difference_estimates)
    datasets = []
    for key, cell in split(analysis.curves, ["dataset"]):
        labels = sorted(int(n) for n in cell["labels"].unique())
        strategies = []
        for inner, own in split(cell, ["strategy"]):
            name = inner["strategy"]
            seeds = sorted(int(s) for s in own["seed"].unique())
            masks = own.groupby("labels")["masks"].mean().reindex(labels)
            values, iqm, difference_iqm = {}, {}, {}
            for part, rows in split(own, ["metric"]):
                metric = part["metric"]
                wide = rows.pivot(index="seed", columns="labels", values="value").reindex(index=seeds, columns=labels)
                values[metric] = [[_short(v) for v in row] for row in wide.to_numpy()]
                iqm[metric] = [iqms.get((key["dataset"], name, metric, n)) for n in labels]
                difference_iqm[metric] = [differences.get((key["dataset"], name, metric, n)) for n in labels]
            style = styles.get(name)
            strategies.append({
                "name": titled(name, analysis.joined.oracles), "baseline": name == analysis.question.baseline,
                "colour": None if style is None else COLOURS[style % len(COLOURS)],
                "dash": "solid" if style is None else _dash(style),
                "rank": order.get((key["dataset"], name), len(order)), "seeds": seeds,
                "masks": [_short(v) for v in masks], "values": values, "iqm": iqm, "differenceIqm": difference_iqm,
            })  # fmt: skip
        strategies.sort(key=lambda entry: (not entry["baseline"], entry["rank"]))
        for i, entry in enumerate(strategies):
            entry["shown"] = i < SHOWN_AT_FIRST
        datasets.append({"name": shown(key["dataset"]), "labels": labels, "strategies": strategies})
    described = [{"id": name, "label": LABELS[name], "factor": factor(name)} for name in metrics]
    main = analysis.question.metric if analysis.question.metric in metrics else (metrics or [""])[0]
    return {"metrics": described, "metric": main, "baseline": shown(analysis.question.baseline), "datasets": datasets}


def _dash(style: int) -> str:
    """Return the dashes of a style: both they and the colour change from one style to the next; 36 pairs differ."""
    return PLOTLY_DASHES[(style + style // len(COLOURS)) % len(PLOTLY_DASHES)]


def _by_outcome(analysis: Analysis) -> dict[tuple[str, str], int]:
    """Return the place of each (data set, strategy) by its AUBC, 0 for the best."""
    rows = analysis.of_question(analysis.estimates, PRIMARY)
    sign = -direction(analysis.question.metric)
    places = (sign * rows["mean"]).groupby(rows["dataset"]).rank(method="first") - 1
    return {
        (dataset, strategy): int(place)
        for dataset, strategy, place in zip(rows["dataset"], rows["strategy"], places, strict=True)
    }


def _iqms(estimates: pd.DataFrame) -> dict[tuple[str, str, str, int], list[float | None]]:
    columns = ("dataset", "strategy", "metric", "labels", "iqm", "iqm_low", "iqm_high")
    return {
        (dataset, strategy, metric, int(labels)): [_short(v) for v in values]
        for dataset, strategy, metric, labels, *values in zip(*(estimates[name] for name in columns), strict=True)
    }


def _short(value: float, digits: int = 5) -> float | None:
    """Return the value with so many significant digits, None where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None

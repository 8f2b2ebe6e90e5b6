"""The report as one HTML file that needs no network: text, tables, and the data and code of the interactive chart."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from egal_bench import __version__
from egal_bench.errors import BenchError
from egal_bench.reports.analysis import LABELS, PRIMARY, SHOWN_METRICS, Analysis, factor, unit
from egal_bench.reports.audit import Check, needs_of
from egal_bench.reports.figures import COLOURS
from egal_bench.reports.names import number, shown
from egal_bench.reports.tables import Table
from egal_bench.reports.verdict import margin_text
from egal_bench.statistics.outcomes import direction, split
from egal_bench.tables.settings import OF_STRATEGY

TEMPLATES = Path(__file__).with_name("templates")
PLOTLY_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SHOWN_AT_FIRST = 8  # strategies in the chart; the others wait behind their check boxes
_ADDRESS = re.compile(r"https?://(?!www\.w3\.org/)")
_NAMESPACE = re.compile(r"(https?)://www\.w3\.org/")


def check_installed() -> None:
    """Raise BenchError where a package that the report needs is missing."""
    missing = [name for name in ("jinja2", "plotly") if find_spec(name) is None]
    if missing:
        raise BenchError(f"the report needs {' and '.join(missing)}: pip install 'egal-bench[report]'")


def page(
    analysis: Analysis,
    verdict: Mapping[str, Any],
    checks: Sequence[Check],
    results: Sequence[Table],
    diagnostics: Sequence[Table],
    galleries: Sequence[Mapping[str, Any]] = (),
    gallery_notes: Sequence[str] = (),
) -> str:
    """Return the HTML of the report.

    Args:
        analysis: all numbers.
        verdict: the content of verdict.json.
        checks: the audit.
        results: tables of results.
        diagnostics: tables of diagnostics.
        galleries: see `galleries.galleries`.
        gallery_notes: why galleries are missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shown"] = shown
    question = analysis.question
    return environment.get_template("report.html").render(
        version=__version__,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_bundle()),
        data=Markup(embedded(chart_data(analysis))),
        question=question,
        metric=LABELS[question.metric],
        unit=unit(question.metric),
        margin=margin_text(question),
        datasets=verdict["datasets"],
        forests=forests(analysis),
        checks=checks,
        notes=[shown_text(note) for note in analysis.notes],
        results=results,
        diagnostics=diagnostics,
        galleries=galleries,
        gallery_notes=gallery_notes,
        settings=settings_of(analysis),
        hardware=hardware_of(analysis),
        folders=verdict["folders"],
        runs=verdict["runs"],
        oracles=[name for name in analysis.strategies if "pool-labels" in (needs_of(name) or ())],
    )


def shown_text(text: str) -> str:
    """Return a sentence without control characters; unlike a name it is not cut, up to a generous length."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return clean if len(clean) <= 1000 else f"{clean[:1000]}…"


@cache
def plotly_bundle() -> str:
    """Return plotly's JavaScript without any address that a browser could open.

    Namespaces of XML are no addresses; they are written with escaped slashes, which are the same string to JavaScript.
    """
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    text = (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return _NAMESPACE.sub(r"\1:\\/\\/www.w3.org/", _ADDRESS.sub("offline:", text)).replace("</script", r"<\/script")


def embedded(value: Any) -> str:
    """Return JSON that can stand in a script element, whatever text it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def chart_data(analysis: Analysis) -> dict[str, Any]:
    """Return what the interactive chart draws: the values of every seed, and the IQM with its interval."""
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
                "name": shown(name), "baseline": name == analysis.question.baseline,
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


def _short(value: float) -> float | None:
    """Return the value with 5 significant digits, None where it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def forests(analysis: Analysis) -> dict[str, list[dict[str, Any]]]:
    """Return per data set the rows of the main figure: the differences, best first, scaled to 0..200."""
    scale = factor(analysis.question.metric)
    margin = analysis.question.margin / 100
    table = analysis.of_question(analysis.verdicts, PRIMARY).dropna(subset=["difference"])
    result = {}
    sign = -direction(analysis.question.metric)
    for key, cell in split(table, ["dataset"]):
        ends = np.abs(cell[["difference", "low", "high"]].to_numpy(np.float64))
        reach = 1.05 * max(float(np.nanmax(ends)), margin)

        def place(value: float, reach: float = reach) -> float:
            return round(100 + 100 * value / reach, 2)

        rows = []
        for row in cell.assign(order=sign * cell["difference"]).sort_values("order").to_dict("records"):
            known = np.isfinite(row["low"])
            rows.append({
                "strategy": shown(row["strategy"]), "verdict": row["verdict"],
                "oracle": "pool-labels" in (needs_of(row["strategy"]) or ()),
                "difference": number(scale * row["difference"], sign=True),
                "low": number(scale * row["low"], sign=True), "high": number(scale * row["high"], sign=True),
                "x": place(row["difference"]), "x_low": place(row["low"]) if known else None,
                "x_high": place(row["high"]) if known else None,
                "margin_low": place(-margin), "margin_width": round(200 * margin / reach, 2),
            })  # fmt: skip
        result[key["dataset"]] = rows
    return result


def settings_of(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return per data set the settings that its runs share, as (name, value) texts."""
    result = []
    for dataset in analysis.joined.datasets:
        record = next(r for run, r in analysis.joined.records.items() if run.dataset == dataset)
        rows = [
            (shown(name), shown(value)) for name, value in sorted(record["settings"].items()) if name not in OF_STRATEGY
        ]
        result.append((shown(dataset), [("shards", shown(record.get("shards", "–"))), *rows]))
    return result


def hardware_of(analysis: Analysis) -> list[tuple[str, str]]:
    """Return the distinct descriptions of the machines and their software, with the number of runs of each."""
    counts: dict[tuple[str, str], int] = {}
    for record in analysis.joined.records.values():
        hardware = record.get("hardware", {})
        versions = ", ".join(f"{name} {v}" for name, v in hardware.get("versions", {}).items() if v)
        commit = f", commit {str(hardware.get('commit'))[:12]}" if hardware.get("commit") else ""
        key = shown(hardware.get("device", "not recorded")), shown_text(f"{versions}{commit}")
        counts[key] = counts.get(key, 0) + 1
    return [(f"{device}: {n} run{'s' * (n != 1)}", versions) for (device, versions), n in counts.items()]

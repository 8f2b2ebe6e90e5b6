"""The report as one HTML file that needs no network: text, tables, and the data and code of the interactive chart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from egal_bench import __version__
from egal_bench.errors import BenchError
from egal_bench.reports.analysis import Analysis
from egal_bench.reports.audit import Check
from egal_bench.reports.names import number, shown
from egal_bench.reports.question import LABELS, PRIMARY, factor, unit
from egal_bench.reports.tables import Table
from egal_bench.reports.verdict import margin_text
from egal_bench.statistics.outcomes import direction, split
from egal_bench.tables.settings import OF_STRATEGY
from egal_shards.errors import printable

TEMPLATES = Path(__file__).with_name("templates")
SCRIPTS = ("shared.js", "report.js", "diagnostics.js")  # the first gives the others `report`
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
    charts: Mapping[str, Any],
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
        charts: what the interactive charts draw; see `charts.charts`.
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
        scripts=[Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in SCRIPTS],
        plotly=Markup(plotly_bundle()),
        data=Markup(embedded(charts)),
        charts=charts,
        pool_obstacle=pool_obstacle(analysis),
        question=question,
        metric=LABELS[question.metric],
        unit=unit(question.metric),
        margin=margin_text(question),
        datasets=verdict["datasets"],
        forests=forests(analysis),
        checks=checks,
        problems=[shown_text(problem) for problem in analysis.joined.problems],
        notes=[shown_text(note) for note in analysis.notes],
        results=results,
        diagnostics=diagnostics,
        galleries=galleries,
        gallery_notes=gallery_notes,
        settings=settings_of(analysis),
        hardware=hardware_of(analysis),
        folders=verdict["folders"],
        runs=verdict["runs"],
        oracles=sorted(analysis.joined.oracles),
    )


def pool_obstacle(analysis: Analysis) -> str:
    """Return why there is no chart of the pool, for reports that have none."""
    if any("pool" in tables for tables in analysis.joined.kept.values()):
        return "No sample of the pool has an ROI, so there is no misalignment to show."
    return "No run has a readable table pool (--keep), so nothing is known of the samples that were not bought."


def shown_text(text: str) -> str:
    """Return a sentence without control characters; unlike a name it is not cut, up to a generous length."""
    clean = printable(text)
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


def forests(analysis: Analysis) -> dict[str, list[dict[str, Any]]]:
    """Return per data set the rows of the main figure: the differences, best first, scaled to 0..200."""
    scale = factor(analysis.question.metric)
    margin, oracles = analysis.question.margin / 100, analysis.joined.oracles
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
                "oracle": row["strategy"] in oracles,
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

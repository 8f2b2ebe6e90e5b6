"""Writing a report: the page, tables, figures and verdict.json of one or many results folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.reports.analysis import analyse
from egal_bench.reports.audit import audit
from egal_bench.reports.charts import charts
from egal_bench.reports.classes import class_names
from egal_bench.reports.diagnostic_tables import diagnostic_tables
from egal_bench.reports.diagnostics import diagnostics
from egal_bench.reports.galleries import galleries
from egal_bench.reports.html import check_installed, page
from egal_bench.reports.joining import join
from egal_bench.reports.pool_diagnostics import pool_diagnostics
from egal_bench.reports.print_figures import draw_figures
from egal_bench.reports.print_galleries import draw_galleries
from egal_bench.reports.question import Question
from egal_bench.reports.tables import main_tables
from egal_bench.reports.verdict import verdict_json


def write_report(runs: Sequence[Path], out: Path, question: Question) -> dict[str, Any]:
    """Write the report of these results folders to the folder `out`; return the content of verdict.json.

    Raises:
        BenchError: a package or a run is missing, or `out` cannot be written.
    """
    check_installed()
    analysis = analyse(join(runs), question)
    checks = audit(analysis.joined)
    verdict = verdict_json(analysis, checks)
    frames, pool = diagnostics(analysis.joined), pool_diagnostics(analysis.joined, question.generator())
    classes = class_names(analysis.joined)
    results = main_tables(analysis, classes)
    bought = diagnostic_tables(analysis.joined, frames, pool, classes)
    drawn = charts(analysis, pool.points, frames["calibration"])
    try:
        for name in ("tables", "figures"):
            (out / name).mkdir(parents=True, exist_ok=True)
        for table in [*results, *bought]:
            _write(out / "tables" / f"{table.name}.csv", table.csv())
            _write(out / "tables" / f"{table.name}.md", table.markdown())
            _write(out / "tables" / f"{table.name}.tex", table.latex())
        pictures, gaps = galleries(analysis)
        draw_figures(analysis, out / "figures")
        draw_galleries(pictures, out / "figures")
        _write(out / "verdict.json", json.dumps(verdict, indent=2, allow_nan=False) + "\n")
        _write(out / "report.html", page(analysis, verdict, checks, results, bought, drawn, pictures, gaps))
    except OSError as error:
        raise BenchError(f"--out {out}: {error.strerror}; choose another folder") from None
    return verdict


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

"""Writing a report: the page, tables, figures and verdict.json of one or many results folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.reports.analysis import Question, analyse
from egal_bench.reports.audit import audit
from egal_bench.reports.diagnostics import diagnostics
from egal_bench.reports.galleries import galleries
from egal_bench.reports.html import check_installed, page
from egal_bench.reports.joining import join
from egal_bench.reports.print_figures import draw_figures
from egal_bench.reports.tables import diagnostic_tables, main_tables
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
    results, bought = main_tables(analysis), diagnostic_tables(analysis, diagnostics(analysis.joined))
    try:
        for name in ("tables", "figures"):
            (out / name).mkdir(parents=True, exist_ok=True)
        for table in [*results, *bought]:
            _write(out / "tables" / f"{table.name}.csv", table.csv())
            _write(out / "tables" / f"{table.name}.md", table.markdown())
            _write(out / "tables" / f"{table.name}.tex", table.latex())
        draw_figures(analysis, out / "figures")
        _write(out / "verdict.json", json.dumps(verdict, indent=2, allow_nan=False) + "\n")
        _write(out / "report.html", page(analysis, verdict, checks, results, bought, *galleries(analysis)))
    except OSError as error:
        raise BenchError(f"--out {out}: {error.strerror}; choose another folder") from None
    return verdict


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

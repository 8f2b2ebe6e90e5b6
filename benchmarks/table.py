"""The table of current figures in README.md, renewed row by row from what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from egal_bench.profiling.measuring import paired_ratio

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
HEAD = ["| benchmark | case | ours, per sample | others: times ours, 95 % interval |", "|---|---|---|---|"]


def renew(table: pd.DataFrame) -> None:
    """Replace, or add, the rows of README.md for the cases in `table`, a table of `measurements.load`."""
    before, figures, after = re.split(f"{BEGIN}|{END}", README.read_text())
    lines = {_case_of(line): line for line in figures.strip().splitlines()[len(HEAD) :]}
    for (name, case), rows in table.groupby(["benchmark", "case"], sort=False):
        lines[str(name), str(case)] = _line(str(name), str(case), rows)
    README.write_text("\n".join([before + BEGIN, *HEAD, *(lines[key] for key in sorted(lines)), END + after]))


def cases() -> list[tuple[str, str]]:
    """Return (benchmark, case) of each row of README.md."""
    figures = re.split(f"{BEGIN}|{END}", README.read_text())[1]
    return [_case_of(line) for line in figures.strip().splitlines()[len(HEAD) :]]


def _case_of(line: str) -> tuple[str, str]:
    _, name, case, *_ = (cell.strip() for cell in line.split("|"))
    return name, case


def _line(name: str, case: str, rows: pd.DataFrame) -> str:
    """Return the row of one case, from the measured rows of its contenders, ours first."""
    first, *others = rows.itertuples()
    if not np.isnan(first.peak_mb):
        cells = [f"{row.stage} {row.peak_mb:.0f} MB" for row in others]
        return f"| {name} | {case} | {first.stage} {first.peak_mb:.0f} MB | {'; '.join(cells)} |"
    cells = []
    for row in others:
        middle, low, high = paired_ratio(_per_sample(row), _per_sample(first))
        cells.append(f"{row.stage} {middle:.3g}× [{low:.3g}, {high:.3g}]")
    return f"| {name} | {case} | {_time(float(np.median(_per_sample(first))))} | {'; '.join(cells)} |"


def _per_sample(row: Any) -> np.ndarray:
    """Return the seconds per sample, float [rounds]."""
    return np.asarray(row.seconds) / row.samples


def _time(seconds: float) -> str:
    """Return the time with three digits, in µs, ms or s."""
    unit, factor = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1.0)
    return f"{seconds * factor:.3g} {unit}"

"""README.md's table of current figures, renewed row by row from what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from egal_bench.measuring import paired_ratio

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
HEAD = ["| benchmark | case | ours, a sample | others: times ours, 95 % interval |", "|---|---|---|---|"]


def renew(table: pd.DataFrame) -> None:
    """Put the lines of `table` (see egal_bench.measurements) where README.md has those of the same cases."""
    text = README.read_text()
    before, old, after = re.split(f"{BEGIN}|{END}", text)
    lines = {line.split("|")[1].strip() + line.split("|")[2]: line for line in old.strip().splitlines()[len(HEAD) :]}
    for (name, case), rows in table.groupby(["benchmark", "case"], sort=False):
        lines[f"{name} {case} "] = _line(str(name), str(case), rows)
    order = sorted(lines)
    README.write_text("\n".join([before + BEGIN, *HEAD, *(lines[key] for key in order), END + after]))


def _line(name: str, case: str, rows: pd.DataFrame) -> str:
    ours, others = rows.iloc[0], rows.iloc[1:]
    if not np.isnan(ours.peak_mb):
        cells = [f"{row.stage} {row.peak_mb:.0f} MB" for row in others.itertuples()]
        return f"| {name} | {case} | {ours.stage} {ours.peak_mb:.0f} MB | {'; '.join(cells)} |"
    cells = []
    for row in others.itertuples():
        middle, low, high = paired_ratio(_each(row), _each(ours))
        cells.append(f"{row.stage} {middle:.3g}× [{low:.3g}, {high:.3g}]")
    return f"| {name} | {case} | {_time(float(np.median(_each(ours))))} | {'; '.join(cells)} |"


def _each(row) -> np.ndarray:
    """Seconds a sample, by round."""
    return np.asarray(row.seconds) / row.samples


def _time(seconds: float) -> str:
    unit, factor = next(
        pair for pair in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)) if seconds * pair[1] < 1e3 or pair[0] == "s"
    )
    return f"{seconds * factor:.3g} {unit}"

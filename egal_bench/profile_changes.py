"""What changed between two files of measured rates."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from egal_bench.errors import BenchError
from egal_bench.measurements import KEY
from egal_bench.measuring import ratio_of_medians

MIN_RUNS = 5  # an interval of fewer says little
WHERE = ("device", "driver", "commit", "threads")  # what two profiles may differ in


@dataclass(frozen=True)
class Changes:
    """`rows`: KEY, rates `old`, `new` (samples a second), `ratio` new/old with its interval `low`, `high`, `verdict`.

    `different`: where the two were measured, {name: [old, new]}. `alone`: how many rows only one of them has.
    """

    rows: pd.DataFrame
    different: dict[str, list[str | None]]
    alone: int


def verdict(low: float, high: float, runs: int) -> str:
    """Of an interval of new/old, from as many `runs` as the profile with fewer has."""
    if runs < MIN_RUNS:
        return "too few runs"
    return "faster" if low > 1 else "slower" if high < 1 else "same"


def changes(old: pd.DataFrame, new: pd.DataFrame) -> Changes:
    """The Changes from `old` to `new`, tables of `measurements.load`. BenchError where they share no row."""
    both = old[[*KEY, "samples", "seconds"]].merge(
        new[[*KEY, "samples", "seconds"]], on=KEY, suffixes=("_old", "_new"), sort=False
    )
    if both.empty:
        raise BenchError(
            "--compare: the two profiles measured nothing in common (their dataset, backbone, size, batch or precision "
            "differ): profile both with the same flags"
        )
    rows = []
    for row in both.to_dict("records"):
        before, after = (row["samples_" + one] / np.asarray(row["seconds_" + one]) for one in ("old", "new"))
        ratio, low, high = ratio_of_medians(after, before)
        kept = {name: None if pd.isna(row[name]) else row[name] for name in KEY}
        rows.append(kept | {
            "old": np.median(before), "new": np.median(after), "ratio": ratio, "low": low, "high": high,
            "verdict": verdict(low, high, min(len(before), len(after))),
        })  # fmt: skip
    return Changes(pd.DataFrame(rows), _different(old, new), len(old) + len(new) - 2 * len(both))


def changes_table(found: Changes) -> Group:
    """A rich table of the Changes; the verdict is that of its interval."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("benchmark", "case", "stage"):
        table.add_column(name)
    for name in ("old, a second", "new", "new/old, 95 %", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows.to_dict("records"):
        interval = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        rates = (f"{row[name]:,.4g}" for name in ("old", "new"))
        table.add_row(row["benchmark"], row["case"], row["stage"], *rates, interval, row["verdict"])
    lines = [f"{name} differs: {old} → {new}" for name, (old, new) in found.different.items()]
    if found.alone:
        lines.append(f"{found.alone} rows are in one of the two only: left out.")
    lines.append(
        "Intervals are of the runs within each profile. Two profiles of one program on a busy machine differ by more: "
        "where `forward` changed alike, the machine did."
    )
    return Group(table, Text("\n".join(lines)))


def _different(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, list[str | None]]:
    one, other = old.iloc[0], new.iloc[0]
    pairs = {name: [one[name], other[name]] for name in WHERE}
    versions = [json.loads(row["versions"]) for row in (one, other)]
    pairs |= {name: [version.get(name) for version in versions] for name in {**versions[0], **versions[1]}}
    return {
        name: [None if pd.isna(part) else str(part) for part in pair]
        for name, pair in pairs.items()
        if pair[0] != pair[1] and not (pd.isna(pair[0]) and pd.isna(pair[1]))
    }

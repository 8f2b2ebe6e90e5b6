"""What changed between two profiles."""

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
from egal_bench.profiling.measurements import FEW_BATCHES, KEY
from egal_bench.profiling.measuring import ratio_of_medians

MIN_RUNS = 5  # with fewer runs an interval says little
ORIGIN = ("device", "driver", "commit", "threads")  # columns in which two comparable profiles may differ


@dataclass(frozen=True)
class Changes:
    """The rates that two profiles have in common, compared.

    Attributes:
        rows: one per common stage: the columns KEY, the median rates `old` and `new` (samples per second), `ratio`
            new/old with its 95 % interval `low`, `high`, and the `verdict`.
        different: what differs between the machines and versions of the two, name → [old, new].
        unmatched: number of rows that only one of the two profiles has.
        batches: batches in the shortest `pass` that is compared; None: there is none.
    """

    rows: pd.DataFrame
    different: dict[str, list[str | None]]
    unmatched: int
    batches: int | None


def verdict(low: float, high: float, runs: int) -> str:
    """Return "faster", "slower", "same" or "too few runs" for an interval of new/old.

    Args:
        low: lower end of the interval.
        high: upper end of the interval.
        runs: number of timed runs behind it, in the profile that has fewer.
    """
    if runs < MIN_RUNS:
        return "too few runs"
    return "faster" if low > 1 else "slower" if high < 1 else "same"


def changes(old: pd.DataFrame, new: pd.DataFrame) -> Changes:
    """Return the Changes from `old` to `new`, two tables of `measurements.load`.

    Raises:
        BenchError: the two have no row in common.
    """
    columns = [*KEY, "samples", "seconds"]
    common = old[columns].merge(new[columns], on=KEY, suffixes=("_old", "_new"), sort=False)
    if common.empty:
        raise BenchError(
            f"--compare: the two profiles measured nothing in common ({'; '.join(_disjoint(old, new))}): profile both "
            "with the same flags"
        )
    rows = []
    for row in common.to_dict("records"):
        rates = {age: row[f"samples_{age}"] / np.asarray(row[f"seconds_{age}"]) for age in ("old", "new")}
        ratio, low, high = ratio_of_medians(rates["new"], rates["old"])
        key = {name: None if pd.isna(row[name]) else row[name] for name in KEY}
        rows.append(key | {
            "old": np.median(rates["old"]), "new": np.median(rates["new"]), "ratio": ratio, "low": low, "high": high,
            "verdict": verdict(low, high, min(map(len, rates.values()))),
        })  # fmt: skip
    unmatched = len(old) + len(new) - 2 * len(common)
    return Changes(pd.DataFrame(rows), _different(old, new), unmatched, _batches(common))


def changes_table(difference: Changes) -> Group:
    """Return the Changes as a rich table with notes below it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("benchmark", "case", "stage"):
        table.add_column(name)
    for name in ("old, per second", "new", "new/old, 95 %", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in difference.rows.to_dict("records"):
        interval = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        rates = (f"{row[name]:,.4g}" for name in ("old", "new"))
        table.add_row(row["benchmark"], row["case"], row["stage"], *rates, interval, row["verdict"])
    notes = [f"{name} differs: {old} → {new}" for name, (old, new) in difference.different.items()]
    if difference.unmatched:
        rows_are = "1 row is" if difference.unmatched == 1 else f"{difference.unmatched} rows are"
        notes.append(f"{rows_are} in only one of the two profiles, and left out.")
    if difference.batches is not None and difference.batches < FEW_BATCHES:
        notes.append(
            f"`pass` has only {difference.batches} batch{'es' if difference.batches > 1 else ''}, so it is mostly "
            "filling the pipeline: compare `scoring`, or profile more images (--samples; a larger pool)."
        )
    notes.append(
        "An interval covers the variation between the runs of one profile. Two profiles of the same program can differ "
        "by more, if other programs used the machine: then `forward` changed by the same ratio."
    )
    return Group(table, Text("\n".join(notes)))


def _disjoint(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return the settings of which two profiles share no value, as phrases such as "batch 32 → 64"."""
    phrases = []
    for name in KEY:
        values = [sorted({f"{value:g}" if isinstance(value, float) else str(value) for value in table[name].dropna()})
                  for table in (old, new)]  # fmt: skip
        if not set(values[0]) & set(values[1]) and any(values):
            phrases.append(f"{name} " + " → ".join(", ".join(texts) or "none" for texts in values))
    return phrases or ["no stage has the same settings in both"]


def _batches(common: pd.DataFrame) -> int | None:
    """Return the number of batches in the shortest pass of two profiles whose rows are merged in `common`."""
    passes = common[(common["benchmark"] == "profile") & (common["stage"] == "pass") & common["batch"].notna()]
    batches = passes[["samples_old", "samples_new"]].min(axis=1) // passes["batch"]
    return None if batches.empty else int(batches.min())


def _different(old: pd.DataFrame, new: pd.DataFrame) -> dict[str, list[str | None]]:
    """Return what differs between the machines and package versions of two profiles, name → [old, new]."""
    first_rows = old.iloc[0], new.iloc[0]
    versions = [json.loads(row["versions"]) for row in first_rows]
    pairs = {name: [row[name] for row in first_rows] for name in ORIGIN}
    pairs |= {name: [version.get(name) for version in versions] for name in {**versions[0], **versions[1]}}
    texts = {name: [None if pd.isna(value) else str(value) for value in pair] for name, pair in pairs.items()}
    return {name: pair for name, pair in texts.items() if pair[0] != pair[1]}

"""Runs benchmarks, writes their times as Parquet and renews their rows in README.md.

Without names it runs all of them. A name is a suite, such as `kernels`, or one benchmark, such as `kernels/whole-op`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.registry import Absent, Benchmark, Contenders, write
from benchmarks.suites import BENCHMARKS
from benchmarks.table import renew
from egal_bench.console import console, counted
from egal_bench.profiling import measurements
from egal_bench.profiling.measuring import interleaved

SEED = 0  # draws the order in which contenders take turns


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="suite or benchmark; default: all")
    parser.add_argument("--out", type=Path, default=Path("profiles"), help="folder of the Parquet file")
    arguments = parser.parse_args()
    chosen = selected(arguments.name)
    if not chosen:
        parser.error(f"no benchmark is named {' or '.join(arguments.name)}; choose from {', '.join(BENCHMARKS)}")
    rows: list[dict] = []
    try:
        with tempfile.TemporaryDirectory(prefix="egal-benchmarks-") as home:
            for benchmark in chosen:
                for label in benchmark.inputs:
                    rows += _measured(benchmark, label, Path(home))
    finally:  # what is measured is kept where a later check fails
        if rows:
            path = write(rows, arguments.out)
            renew(measurements.load(path))
            print(path)


def selected(names: list[str]) -> list[Benchmark]:
    """Return the benchmarks that have one of these names or belong to one of these suites; without names, all."""
    return [
        benchmark
        for benchmark in BENCHMARKS.values()
        if not names or benchmark.name in names or benchmark.suite in names
    ]


def _measured(benchmark: Benchmark, label: str, home: Path) -> list[dict]:
    """Return the rows of one case; where this machine lacks what it needs, print why and return none."""

    def timer(contenders: Contenders, rounds: int) -> dict[str, np.ndarray]:
        with counted(f"{benchmark.name} {label}", rounds * len(contenders)) as advance:
            if benchmark.metric == "rate":
                return interleaved(contenders, rounds, np.random.default_rng(SEED), advance)
            seconds = {}
            for name, run in contenders.items():
                start = perf_counter()
                run()
                seconds[name] = np.array([perf_counter() - start])
                advance(rounds)
            return seconds

    try:
        return benchmark.rows(label, home, timer)
    except Absent as reason:
        console.print(f"{benchmark.name}, {label}: skipped: {reason}")
        return []


if __name__ == "__main__":
    main()

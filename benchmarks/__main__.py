"""`python -m benchmarks [SUITE or SUITE/NAME …]`: run them in turns, write Parquet, renew their rows in README.md."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.registry import Absent, Benchmark, Contenders, write
from benchmarks.suites import BENCHMARKS
from benchmarks.table import renew
from egal_bench import measurements
from egal_bench.measuring import interleaved
from egal_bench.progress import console, counted

SEED = 0  # of the order in which contenders take turns


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("profiles"), help="folder of the Parquet file")
    words = parser.parse_args()
    chosen = [found for name, found in BENCHMARKS.items() if not words.which or _wanted(name, words.which)]
    if not chosen:
        parser.error(f"no benchmark is named {' or '.join(words.which)}; there are {', '.join(BENCHMARKS)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="egal-benchmarks-") as home:
        for declared in chosen:
            for label in declared.inputs:
                rows += _measured(declared, label, Path(home))
    if rows:
        path = write(rows, words.out)
        renew(measurements.load(path))
        print(path)


def _wanted(name: str, words: list[str]) -> bool:
    return any(word in (name, name.partition("/")[0]) for word in words)


def _measured(declared: Benchmark, label: str, home: Path) -> list[dict]:
    """Rows of one case; none, with a message, where what it needs is absent."""

    def timed(contenders: Contenders, rounds: int) -> dict[str, np.ndarray]:
        with counted(f"{declared.name} {label}", rounds * len(contenders)) as advance:
            if declared.metric == "rate":
                return interleaved(contenders, rounds, np.random.default_rng(SEED), advance)
            seconds = {}
            for name, run in contenders.items():
                start = perf_counter()
                run()
                seconds[name] = np.array([perf_counter() - start])
                advance(rounds)
            return seconds

    try:
        return declared.rows(label, home, timed)
    except Absent as reason:
        console.print(f"{declared.name}, {label}: skipped: {reason}")
        return []


if __name__ == "__main__":
    main()

"""The registry of benchmarks. Each is declared once: its inputs, who competes on them, and what is measured.

    @benchmark({"7×7→224²": (64, 7, 224)}, rounds=25)
    def whole_op(shape, home) -> Case:
        '''What is compared, the command that measures it, and why the result is as it is.'''

`python -m benchmarks` runs them all and renews the table of README.md; `pytest benchmarks --benchmark-only` runs the
same declarations under pytest-benchmark. Both write the same Parquet table. Docstrings hold no figures: these stand in
README.md alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egal_bench.profiling import measurements

BENCHMARKS: dict[str, Benchmark] = {}  # "suite/name" → benchmark, in the order of declaration
Contenders = Mapping[str, Callable[[], object]]  # name → one run
Timer = Callable[[Contenders, int], Mapping[str, np.ndarray]]  # contenders, rounds → seconds [rounds] of each


class Absent(Exception):
    """This machine lacks what a benchmark needs: the benchmark is skipped, with this message."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A benchmark on one input, ready to run.

    Attributes:
        contenders: the first is ours, and the ratios of the others are to it.
        samples: number of samples that one run processes.
        check: raises AssertionError unless the contenders agree; called before any of them is timed.
    """

    contenders: Contenders
    samples: int
    check: Callable[[], None]


@dataclass(frozen=True)
class Benchmark:
    """A declared benchmark.

    Attributes:
        name: "suite/name".
        inputs: label → input.
        rounds: number of timed runs of each contender.
        metric: "rate", samples per second by the clock; or "peak_mb", which each contender then returns.
        build: (input, home) → its Case; `home` is a folder for what the cases of one session share.
    """

    name: str
    inputs: Mapping[str, Any]
    rounds: int
    metric: Literal["rate", "peak_mb"]
    build: Callable[[Any, Path], Case]

    @property
    def suite(self) -> str:
        """Return the part of the name before the slash."""
        return self.name.partition("/")[0]

    def rows(self, label: str, home: Path, timer: Timer) -> list[dict]:
        """Check and measure one case; return its rows of `measurements.SCHEMA`, one per contender.

        Args:
            label: label of the input.
            home: folder for what the cases of one session share.
            timer: times the contenders.

        Raises:
            Absent: this machine lacks what the case needs.
            AssertionError: the contenders disagree.
        """
        case, peaks = self.build(self.inputs[label], home), {}
        case.check()
        contenders = case.contenders
        if self.metric == "peak_mb":
            contenders = {name: _storing(run, peaks, name) for name, run in contenders.items()}
        seconds = timer(contenders, self.rounds)
        return [
            measurements.row(self.name, name, case.samples, seconds[name], case=label, peak_mb=peaks.get(name))
            for name in contenders
        ]


def _storing(run: Callable[[], object], results: dict[str, object], name: str) -> Callable[[], None]:
    """Return a run that stores what `run` returns as results[name]."""

    def run_and_store() -> None:
        results[name] = run()

    return run_and_store


def benchmark(
    inputs: Mapping[str, Any], *, rounds: int, metric: Literal["rate", "peak_mb"] = "rate"
) -> Callable[[Callable[[Any, Path], Case]], Callable[[Any, Path], Case]]:
    """Return a decorator that registers a builder as `suite/name`, after its module and its own name.

    Args:
        inputs: label → input.
        rounds: number of timed runs of each contender.
        metric: see `Benchmark`.
    """

    def declare(build: Callable[[Any, Path], Case]) -> Callable[[Any, Path], Case]:
        name = f"{build.__module__.rpartition('.')[2]}/{build.__name__.replace('_', '-')}"
        BENCHMARKS[name] = Benchmark(name, inputs, rounds, metric, build)
        return build

    return declare


def write(rows: list[dict], out: Path) -> Path:
    """Write the rows of one session to a new file in the folder `out`; return its path."""
    path = out / f"benchmarks-{datetime.now(UTC):%Y%m%dT%H%M%S}.parquet"
    measurements.write(path, rows, "cpu")
    return path

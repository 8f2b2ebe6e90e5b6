"""Benchmarks, each declared once: its inputs, who competes on them, and what is measured.

    @benchmark({"7×7→224²": (64, 7, 224)}, rounds=25)
    def whole_op(shape, home) -> Case:
        '''What is compared, the result, and why it is so.'''

`python -m benchmarks` runs them all and renews README.md's table, `pytest benchmarks --benchmark-only` runs the same
under pytest-benchmark. Both write the same Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egal_bench import measurements

BENCHMARKS: dict[str, Benchmark] = {}  # "suite/name", in the order of declaration
Contenders = Mapping[str, Callable[[], object]]


class Absent(Exception):
    """What a benchmark needs and this machine lacks: it is skipped, with this message."""


@dataclass(frozen=True)
class Case:
    """A benchmark on one input, ready to run.

    Attributes:
        contenders: name → one run; the first is ours, and the others' ratios are to it.
        samples: that one run goes through.
        check: asserts that the contenders agree; before any is timed.
    """

    contenders: Contenders
    samples: int
    check: Callable[[], None]


@dataclass(frozen=True)
class Benchmark:
    """`build(input, home)` is the Case of an input; `home` is a folder for what the cases of one session share.

    `metric`: "rate", samples a second by the clock, or "peak_mb", which a contender then returns from its one run.
    """

    name: str
    inputs: Mapping[str, Any]
    rounds: int
    metric: Literal["rate", "peak_mb"]
    build: Callable[[Any, Path], Case]

    def rows(self, label: str, home: Path, timed: Callable[[Contenders, int], Mapping[str, np.ndarray]]) -> list[dict]:
        """Rows of `egal_bench.measurements` for one input; `timed(contenders, rounds)` gives seconds [rounds] of each.

        Raises Absent, or AssertionError where contenders disagree.
        """
        case, peaks = self.build(self.inputs[label], home), {}
        case.check()
        contenders = case.contenders
        if self.metric == "peak_mb":
            contenders = {name: _kept(name, run, peaks) for name, run in contenders.items()}
        seconds = timed(contenders, self.rounds)
        return [
            measurements.row(self.name, name, case.samples, seconds[name], case=label, peak_mb=peaks.get(name))
            for name in contenders
        ]


def _kept(name: str, run: Callable[[], object], into: dict[str, object]) -> Callable[[], None]:
    def keep() -> None:
        into[name] = run()

    return keep


def benchmark(
    inputs: Mapping[str, Any], *, rounds: int, metric: Literal["rate", "peak_mb"] = "rate"
) -> Callable[[Callable[[Any, Path], Case]], Callable[[Any, Path], Case]]:
    """Declare the decorated builder as `suite/name`, after its module and itself. `inputs`: label → input."""

    def declare(build: Callable[[Any, Path], Case]) -> Callable[[Any, Path], Case]:
        name = f"{build.__module__.rpartition('.')[2]}/{build.__name__.replace('_', '-')}"
        BENCHMARKS[name] = Benchmark(name, inputs, rounds, metric, build)
        return build

    return declare


def write(rows: list[dict], out: Path) -> Path:
    """Write the rows of a session to a new file in `out`."""
    path = out / f"benchmarks-{datetime.now(UTC):%Y%m%dT%H%M%S}.parquet"
    measurements.write(path, rows, "cpu")
    return path

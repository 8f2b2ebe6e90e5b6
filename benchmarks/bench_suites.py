"""Every benchmark under pytest-benchmark: `pytest benchmarks --benchmark-only`, and `-k kernels` for a suite.

Ours is what pytest-benchmark times; the others run in turns with it, and their ratios are in `extra_info`.
"""

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.registry import Absent, Contenders, write
from benchmarks.suites import BENCHMARKS
from egal_bench.measuring import paired_ratio

CASES = [(name, label) for name, declared in BENCHMARKS.items() for label in declared.inputs]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="session")
def rows():
    found = []
    yield found
    if found:
        print("\n", write(found, Path("profiles")))


@pytest.mark.parametrize(("name", "label"), CASES, ids=lambda part: part)
def test_benchmark(benchmark, home, rows, name, label):
    declared = BENCHMARKS[name]

    def timed(contenders: Contenders, rounds: int) -> dict[str, np.ndarray]:
        (first, ours), *others = contenders.items()
        seconds = {other: [] for other, _ in others}

        def run_others() -> None:
            for other, run in others:
                start = time.perf_counter()
                run()
                seconds[other].append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=run_others, rounds=rounds, warmup_rounds=int(declared.metric == "rate"))
        return {first: np.array(benchmark.stats.stats.data)} | {
            other: np.array(values[-rounds:]) for other, values in seconds.items()
        }

    try:
        ours, *others = found = declared.rows(label, home, timed)
    except Absent as reason:
        pytest.skip(str(reason))
    rows += found
    for other in others:
        benchmark.extra_info[other["stage"]] = paired_ratio(other["seconds"], ours["seconds"])[0]
    benchmark.extra_info |= {"samples": ours["samples"], "peak_mb": ours["peak_mb"]}

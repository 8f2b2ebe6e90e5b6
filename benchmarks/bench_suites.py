"""Every benchmark under pytest-benchmark: `pytest benchmarks --benchmark-only`, and `-k kernels` for one suite.

pytest-benchmark times our contender. The others run once before each of its rounds, and their ratios to ours are in
`extra_info`.
"""

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.registry import Absent, Contenders, write
from benchmarks.suites import BENCHMARKS
from egal_bench.profiling.measuring import paired_ratio

CASES = [(name, label) for name, declared in BENCHMARKS.items() for label in declared.inputs]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The folder for what the cases share."""
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="session")
def rows():
    """The rows of all cases, written to a file at the end."""
    rows = []
    yield rows
    if rows:
        print("\n", write(rows, Path("profiles")))


@pytest.mark.parametrize(("name", "label"), CASES, ids=str)
def test_benchmark(benchmark, home, rows, name, label):
    declared = BENCHMARKS[name]

    def timer(contenders: Contenders, rounds: int) -> dict[str, np.ndarray]:
        (first, run_first), *others = contenders.items()
        seconds = {name: [] for name, _ in others}

        def run_others() -> None:
            for name, run in others:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)

        benchmark.pedantic(run_first, setup=run_others, rounds=rounds, warmup_rounds=int(declared.metric == "rate"))
        timed = {name: np.array(values[-rounds:]) for name, values in seconds.items()}
        return {first: np.array(benchmark.stats.stats.data)} | timed

    try:
        first, *others = declared.rows(label, home, timer)
    except Absent as reason:
        pytest.skip(str(reason))
    rows += [first, *others]
    for other in others:
        benchmark.extra_info[other["stage"]] = paired_ratio(other["seconds"], first["seconds"])[0]
    benchmark.extra_info |= {"samples": first["samples"], "peak_mb": first["peak_mb"]}

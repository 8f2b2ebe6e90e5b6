"""Fixtures that the tests of the benchmarks share: a page of figures, and the command line with its own benchmarks."""

import sys
from pathlib import Path

import pytest

from benchmarks import __main__, table
from benchmarks.registry import Benchmark, Case

PAGE = """# Figures
<!-- figures -->
| benchmark | case | ours, per sample | others: times ours, 95 % interval |
|---|---|---|---|
| kernels/other | a case | 1 ms | kept 2× [2, 2] |
| suite/speed | small | 9 ms | old 9× [9, 9] |
<!-- end of figures -->
"""


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A README.md with two rows of figures, in place of the real one."""
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    monkeypatch.setattr(table, "README", path)
    return path


@pytest.fixture
def declared():
    """Return a function that declares `suite/speed` with one input, which is this case or is built by this function."""

    def declare(case, metric="rate", rounds=3) -> Benchmark:
        build = (lambda _, home: case) if isinstance(case, Case) else case
        return Benchmark("suite/speed", {"small": None}, rounds, metric, build)

    return declare


@pytest.fixture
def run_benchmarks(monkeypatch):
    """Return a function that runs `python -m benchmarks WORDS` in this process, with one benchmark registered."""

    def run(benchmark: Benchmark, *words) -> None:
        monkeypatch.setattr(__main__, "BENCHMARKS", {benchmark.name: benchmark})
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, words)])
        __main__.main()

    return run

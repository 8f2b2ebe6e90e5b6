"""Benchmarks are declared once, checked before they are timed, and end in one table and on one page."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import table
from benchmarks.registry import Absent, Case
from egal_bench.profiling import measurements

ROOT = Path(__file__).resolve().parents[2]


def agree() -> None:
    """A check that passes."""


def timer(contenders, rounds):
    """Run each contender once; return 1, 2, 3 seconds for the first, 10, 20, 30 for the second."""
    for run in contenders.values():
        run()
    return {name: np.arange(1, rounds + 1) * 10.0**i for i, name in enumerate(contenders)}


def test_rows_hold_the_seconds_and_rate_of_each_contender(declared):
    case = Case(contenders={"ours": int, "theirs": int}, samples=4, check=agree)
    ours, theirs = declared(case).rows("small", Path(), timer)
    assert (ours["benchmark"], ours["case"]) == ("suite/speed", "small")
    assert (ours["stage"], theirs["stage"]) == ("ours", "theirs")
    assert (ours["seconds"], theirs["seconds"]) == ([1, 2, 3], [10, 20, 30])
    assert (ours["rate_q50"], theirs["rate_q50"]) == (2, 0.2)


def test_the_peak_is_what_the_contender_returns(declared):
    case = Case(contenders={"ours": lambda: 12.5, "theirs": lambda: 99.0}, samples=1, check=agree)
    ours, theirs = declared(case, "peak_mb", rounds=1).rows("small", Path(), timer)
    assert (ours["peak_mb"], theirs["peak_mb"]) == (12.5, 99.0)


def test_nothing_is_timed_where_the_contenders_disagree(declared):
    runs = []

    def disagree() -> None:
        raise AssertionError("they differ")

    case = Case(contenders={"ours": lambda: runs.append(1)}, samples=1, check=disagree)
    with pytest.raises(AssertionError, match="they differ"):
        declared(case).rows("small", Path(), timer)
    assert not runs


def test_a_session_writes_a_table_and_renews_only_its_own_row(page, declared, run_benchmarks, tmp_path, capsys):
    contenders = {"ours": lambda: sum(range(2000)), "theirs": lambda: sum(range(20000))}
    before = page.read_text().splitlines()
    run_benchmarks(declared(Case(contenders=contenders, samples=10, check=agree)), "suite", "--out", tmp_path)
    rows = measurements.load(Path(capsys.readouterr().out.split()[-1]))
    assert list(rows.stage) == ["ours", "theirs"]
    assert [len(seconds) for seconds in rows.seconds] == [3, 3]
    lines = page.read_text().splitlines()
    assert lines[:5] == before[:5]
    assert lines[5].startswith("| suite/speed | small | ")
    assert "theirs" in lines[5]
    assert "old" not in lines[5]
    assert lines[6] == "<!-- end of figures -->"


def test_an_absent_requirement_skips_the_case_with_a_reason(page, declared, run_benchmarks, tmp_path, capsys):
    def build(_, home) -> Case:
        raise Absent("the peer is not installed")

    before = page.read_text()
    run_benchmarks(declared(build), "--out", tmp_path)
    assert "suite/speed, small: skipped: the peer is not installed" in " ".join(capsys.readouterr().err.split())
    assert page.read_text() == before
    assert not list(tmp_path.glob("*.parquet"))


def test_an_unknown_name_is_refused_with_the_known_names(declared, run_benchmarks, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_benchmarks(declared(Case(contenders={}, samples=1, check=agree)), "sweet")
    assert stopped.value.code == 2
    assert "no benchmark is named sweet; choose from suite/speed" in capsys.readouterr().err


def test_the_ratios_on_the_page_are_paired_by_round(page):
    rows = [
        measurements.row("suite/speed", "ours", 2, np.array([2e-3, 4e-3, 8e-3]), case="small"),
        measurements.row("suite/speed", "theirs", 4, np.array([12e-3, 24e-3, 48e-3]), case="small"),
    ]
    path = page.with_name("rows.parquet")
    measurements.write(path, rows, "cpu")
    table.renew(measurements.load(path))
    assert "| suite/speed | small | 2 ms | theirs 3× [3, 3] |" in page.read_text()


DUMMY = """
from benchmarks.registry import Case, benchmark

@benchmark({"small": 1000}, rounds=4)
def dummy(n, home):
    assert home.is_dir()
    contenders = {"ours": lambda: sum(range(n)), "theirs": lambda: sum(range(9 * n))}
    return Case(contenders=contenders, samples=10, check=lambda: None)

from benchmarks.bench_suites import *
"""


def test_pytest_benchmark_times_the_same_declarations(tmp_path):
    (tmp_path / "bench_own.py").write_text(DUMMY)
    command = [sys.executable, "-m", "pytest", "bench_own.py", "--benchmark-only", "--import-mode=importlib"]
    not_a_worker = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.run(
        [*command, "-k", "dummy"],
        capture_output=True, text=True, cwd=tmp_path, env=not_a_worker | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "1 passed" in process.stdout, process.stdout + process.stderr
    [path] = (tmp_path / "profiles").glob("*.parquet")
    rows = measurements.load(path)
    assert list(rows.stage) == ["ours", "theirs"]
    assert [len(seconds) for seconds in rows.seconds] == [4, 4]
    assert (rows.rate_q50 > 0).all()

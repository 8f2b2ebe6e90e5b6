"""Benchmarks are declared once, checked before they are timed, and end in one table and one page."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__, table
from benchmarks.registry import Absent, Benchmark, Case
from benchmarks.suites import BENCHMARKS
from egal_bench import measurements

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Figures
<!-- figures -->
| benchmark | case | ours, a sample | others: times ours, 95 % interval |
|---|---|---|---|
| kernels/other | a case | 1 ms | kept 2× [2, 2] |
| suite/speed | small | 9 ms | old 9× [9, 9] |
<!-- end of figures -->
"""


def declared(case: Case, metric="rate", rounds=3) -> Benchmark:
    return Benchmark("suite/speed", {"small": None}, rounds, metric, lambda given, home: case)


def turns(contenders, rounds):
    """Seconds that say which contender and round they are of: 1, 2, 3 and 10, 20, 30."""
    for run in contenders.values():
        run()
    return {name: np.arange(1, rounds + 1) * 10.0**i for i, name in enumerate(contenders)}


def test_rows_hold_each_contenders_seconds_and_rate():
    case = Case({"ours": int, "theirs": int}, samples=4, check=lambda: None)
    ours, theirs = declared(case).rows("small", Path(), turns)
    assert (ours["benchmark"], ours["case"], ours["stage"], theirs["stage"]) == (
        "suite/speed",
        "small",
        "ours",
        "theirs",
    )
    assert (ours["seconds"], theirs["seconds"]) == ([1, 2, 3], [10, 20, 30])
    assert (ours["rate_q50"], theirs["rate_q50"]) == (2, 0.2)


def test_peak_is_what_the_contender_returns():
    case = Case({"ours": lambda: 12.5, "theirs": lambda: 99.0}, samples=1, check=lambda: None)
    ours, theirs = declared(case, "peak_mb", rounds=1).rows("small", Path(), turns)
    assert (ours["peak_mb"], theirs["peak_mb"]) == (12.5, 99.0)


def test_nothing_is_timed_where_contenders_disagree():
    ran = []

    def disagree() -> None:
        raise AssertionError("they differ")

    case = Case({"ours": lambda: ran.append(1)}, samples=1, check=disagree)
    with pytest.raises(AssertionError, match="they differ"):
        declared(case).rows("small", Path(), turns)
    assert not ran


@pytest.fixture
def page(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    monkeypatch.setattr(table, "README", path)
    return path


def run_main(monkeypatch, benchmarks: dict, *words: str) -> None:
    monkeypatch.setattr(__main__, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    __main__.main()


def test_a_run_writes_parquet_and_renews_its_own_line_only(page, tmp_path, monkeypatch, capsys):
    case = Case({"ours": lambda: sum(range(2000)), "theirs": lambda: sum(range(20000))}, samples=10, check=lambda: None)
    run_main(monkeypatch, {"suite/speed": declared(case)}, "suite", "--out", str(tmp_path))
    rows = measurements.load(Path(capsys.readouterr().out.split()[-1]))
    assert list(rows.stage) == ["ours", "theirs"]
    assert [len(seconds) for seconds in rows.seconds] == [3, 3]
    lines = page.read_text().splitlines()
    assert lines[:5] == PAGE.splitlines()[:5]
    assert lines[5].startswith("| suite/speed | small | ")
    assert "theirs" in lines[5]
    assert "old" not in lines[5]
    assert lines[6] == "<!-- end of figures -->"


def test_what_is_absent_is_skipped_with_its_reason(page, tmp_path, monkeypatch, capsys):
    def build(given, home) -> Case:
        raise Absent("the peer is not installed")

    run_main(
        monkeypatch,
        {"suite/speed": Benchmark("suite/speed", {"small": None}, 3, "rate", build)},
        "--out",
        str(tmp_path),
    )
    assert "suite/speed, small: skipped: the peer is not installed" in " ".join(capsys.readouterr().err.split())
    assert page.read_text() == PAGE
    assert not list(tmp_path.glob("*.parquet"))


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, {"suite/speed": declared(Case({}, 1, lambda: None))}, "sweet")
    assert stopped.value.code == 2
    assert "no benchmark is named sweet; there are suite/speed" in capsys.readouterr().err


def test_ratios_on_the_page_are_paired_by_round(page):
    rows = [
        measurements.row("suite/speed", "ours", 2, np.array([2e-3, 4e-3, 8e-3]), case="small"),
        measurements.row("suite/speed", "theirs", 4, np.array([12e-3, 24e-3, 48e-3]), case="small"),
    ]
    path = page.with_name("rows.parquet")
    measurements.write(path, rows, "cpu")
    table.renew(measurements.load(path))
    assert "| suite/speed | small | 2 ms | theirs 3× [3, 3] |" in page.read_text()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_docstring_gives_its_command_result_and_explanation(name):
    text = BENCHMARKS[name].build.__doc__
    assert f"python -m benchmarks {name}" in text
    assert len(text.split("\n\n")) > 1
    assert "RESULT" not in text


DUMMY = """
from benchmarks.registry import Case, benchmark

@benchmark({"small": 1000}, rounds=4)
def dummy(n, home):
    assert home.is_dir()
    return Case({"ours": lambda: sum(range(n)), "theirs": lambda: sum(range(9 * n))}, 10, lambda: None)

from benchmarks.bench_suites import *
"""


def test_pytest_benchmark_times_the_same_declaration_and_writes_the_same_table(tmp_path):
    (tmp_path / "bench_own.py").write_text(DUMMY)
    command = [sys.executable, "-m", "pytest", "bench_own.py", "--benchmark-only", "--import-mode=importlib", "-k"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no worker of xdist
    done = subprocess.run(
        [*command, "dummy"], capture_output=True, text=True, cwd=tmp_path, env=alone | {"PYTHONPATH": str(ROOT)}
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    [path] = (tmp_path / "profiles").glob("*.parquet")
    rows = measurements.load(path)
    assert list(rows.stage) == ["ours", "theirs"]
    assert [len(seconds) for seconds in rows.seconds] == [4, 4]
    assert (rows.rate_q50 > 0).all()

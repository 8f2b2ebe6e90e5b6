"""Who is told what: a user's mistake is one line and status 2, a defect is status 1, and --debug shows the place."""

import sys

import pytest

from bench.command_line import egal_bench, error_of
from bench.tiny import FLAGS
from egal_bench.cli import main
from egal_bench.errors import BenchError, Interrupted
from egal_bench.runs import record
from egal_kernels.errors import ArgumentError
from egal_shards import ShardError

DEFECT = """
import numpy as np
from egal_bench.runs import record
def evaluate_wrongly(logits, labels):
    raise ValueError("a mistake of ours")
record.evaluate = evaluate_wrongly
def harmless(pool): return np.arange(len(pool))
harmless.needs_roi = harmless.needs_features = False
"""
WRONG = """
def wrong(pool):
    return pool.entropy.no_such_attribute
wrong.needs_roi = wrong.needs_features = False
"""

HOLDS_ON = """
import os, time
import numpy as np
def strategy(pool):
    try:
        os.close(os.open("first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        open("second", "w").close()
        try:
            time.sleep(600)
        except SystemExit:
            pass
        return np.arange(len(pool))
    while not os.path.exists("second"):
        time.sleep(0.01)
    raise ValueError("the other run is in its query")
strategy.needs_roi = strategy.needs_features = False
"""


@pytest.fixture(params=["in one process", "in two worker processes"])
def compare(request, tmp_path):
    """Return a function that compares one strategy of a user's module."""
    if request.param == "in one process":
        (tmp_path / "breaks.py").write_text(DEFECT)
        (tmp_path / "mine.py").write_text(WRONG)
        return lambda *words: egal_bench("compare", *FLAGS, "--workers=1", "--out=out", *words, cwd=tmp_path)
    user_module, execute = (request.getfixturevalue(name) for name in ("user_module", "egal_bench_here"))
    request.getfixturevalue("monkeypatch").setattr(record, "evaluate", record.evaluate)  # restored afterwards
    user_module("breaks", DEFECT)
    user_module("mine", WRONG)
    return lambda *words: execute("compare", *FLAGS, "--workers=2", "--out=out", *words)


def test_defect_in_a_run_ends_with_status_1(compare):
    message = error_of(compare("--strategies=breaks:harmless"), status=1)
    assert message == "error: ValueError: a mistake of ours (a defect of egal-bench: --debug shows where)"


def test_debug_shows_where_a_defect_was_raised(compare):
    process = compare("--strategies=breaks:harmless", "--debug")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert 'breaks.py", line 5, in evaluate_wrongly' in process.stderr
    assert "ValueError: a mistake of ours" in process.stderr


def test_exception_in_a_users_strategy_ends_with_status_2(compare):
    message = error_of(compare("--strategies=mine:wrong"), status=2)
    assert "strategy 'mine:wrong' raised AttributeError" in message
    assert "(mine.py, line 3)" in message
    assert "defect" not in message


def test_debug_shows_the_users_line_as_well(compare):
    process = compare("--strategies=mine:wrong", "--debug")
    assert process.returncode == 1
    assert 'mine.py", line 3, in wrong' in process.stderr
    assert "return pool.entropy.no_such_attribute" in process.stderr


def test_code_that_catches_system_exit_does_not_hold_up_the_end(egal_bench_here, user_module):
    user_module("holds_on", HOLDS_ON)
    process = egal_bench_here("compare", *FLAGS, "--workers=2", "--out=out", "--strategies=holds_on:strategy")
    assert "the other run is in its query" in error_of(process)


def test_debug_shows_the_traceback_of_a_users_mistake(tmp_path):
    process = egal_bench("pack", "folder", "nowhere", "out", "--debug", cwd=tmp_path)
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ShardError: " in process.stderr


class OurOwn(ValueError):
    """An error that states no user's mistake."""


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (BenchError("--seeds: too\nfew"), "error: --seeds: too few", 2),
        (ShardError("shard-000001.tar: damaged"), "error: shard-000001.tar: damaged", 2),
        (ArgumentError("maps: 3 dimensions"), "error: maps: 3 dimensions", 2),
        (Interrupted("interrupted: 1 of 2"), "error: interrupted: 1 of 2", 130),
        (KeyboardInterrupt(), "error: interrupted", 130),
        (OurOwn("no"), "error: OurOwn: no (a defect of egal-bench: --debug shows where)", 1),
        (KeyError("x"), "error: KeyError: 'x' (a defect of egal-bench: --debug shows where)", 1),
        (OSError(5, "Input/output error", "f"),
         "error: OSError: [Errno 5] Input/output error: 'f' (a defect of egal-bench: --debug shows where)", 1),
        (BenchError("https://user:secret@host/set?sig=secret fails"), "error: https://host/set fails", 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_kind_of_an_error_decides_line_and_status(monkeypatch, capsys, error, line, status):
    def raises(shards):
        raise error

    monkeypatch.setattr("egal_shards.verify", raises)
    monkeypatch.setattr(sys, "argv", ["egal-bench", "verify", "set"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert capsys.readouterr().err == line + "\n"


def test_debug_lets_every_error_pass(monkeypatch):
    def raises(shards):
        raise BenchError("no")

    monkeypatch.setattr("egal_shards.verify", raises)
    monkeypatch.setattr(sys, "argv", ["egal-bench", "verify", "set", "--debug"])
    with pytest.raises(BenchError):
        main()

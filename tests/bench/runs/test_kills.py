"""Kill -9 of comparisons, alone and beside a second one: at the end the tables are those of a quiet comparison."""

import os
import random
import signal
import subprocess
import time
from itertools import takewhile

import pandas as pd

from bench.command_line import EGAL_BENCH, Command, egal_bench
from bench.tiny import FLAGS, contents
from profiles import is_thorough

STOPS = """
import os, signal
import numpy as np
from egal_bench.tables import files

def in_order(pool):
    return np.arange(len(pool))

def stop_before_rounds(source, target, replace=os.replace):
    if "rounds" in target.parts and "stop" in os.environ:
        os.kill(os.getpid(), signal.SIGSTOP)
    replace(source, target)

in_order.needs_roi = in_order.needs_features = False
os.replace = stop_before_rounds
"""


def assert_same(left: dict[str, pd.DataFrame], right: dict[str, pd.DataFrame]) -> None:
    assert left.keys() == right.keys()
    for table in left:
        pd.testing.assert_frame_equal(left[table], right[table], check_exact=True)


def test_a_comparison_completes_the_run_that_another_tore(tmp_path, request):
    """The first is killed when all tables but `rounds` have their names, while the second waits for its run."""
    (tmp_path / "mine.py").write_text(STOPS)
    command = [EGAL_BENCH, "compare", *FLAGS, "--strategies=mine:in_order", "--seeds=1", "--workers=1", "--out=torn"]
    first = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"stop": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    request.addfinalizer(first.kill)
    _, status = os.waitpid(first.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert list(tmp_path.glob("torn/selections/**/part.parquet"))
    second = Command(*command[1:], cwd=tmp_path)
    request.addfinalizer(second.kill)
    lines = list(takewhile(lambda line: not line.startswith("waiting for"), second.lines()))
    assert second.poll() is None, lines
    assert not any(line.startswith("run 1/") for line in lines)
    first.kill()
    first.wait()
    process = second.completed()
    assert process.returncode == 0, process.stderr
    torn = contents(tmp_path / "torn")
    assert torn["rounds"]["round"].tolist() == [0, 1, 2]
    assert torn["selections"].groupby("round").size().tolist() == [15, 10, 10]
    assert list(tmp_path.glob("torn/*/**/.*.part.parquet")) == []


def test_kill_9_at_any_moment_changes_nothing_at_the_end(finished, tmp_path):
    """Kill the comparison again and again at random moments, alone and beside a second one; then finish it."""
    rng = random.Random(0)
    words = ["compare", *FLAGS, "--workers=2", "--out=cut"]
    for attempt in range(40 if is_thorough() else 2):
        commands = [Command(*words, cwd=tmp_path, session=True) for _ in range(1 + attempt % 2)]
        for command in commands:
            time.sleep(rng.uniform(0.5, 5.0))
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
            command.wait()
    egal_bench(*words, cwd=tmp_path, status=0)
    assert_same(contents(tmp_path / "cut"), contents(finished[0]))
    assert list((tmp_path / "cut").glob("*/**/.*.part.parquet")) == []
    assert not (tmp_path / "cut" / "unfinished").exists()

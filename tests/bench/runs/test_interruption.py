"""Ctrl-C and dying processes: finished runs are kept, no half-written table remains, and the message says so."""

import re
import signal
import subprocess
import sys
import time

import pytest

from bench.command_line import EGAL_BENCH, Command, error_of
from bench.tiny import FLAGS
from egal_bench.runs import local_engine
from egal_bench.tables.results import load


@pytest.fixture
def started(tmp_path, request):
    """Return a function that starts a comparison in tmp_path."""

    def start(*words) -> Command:
        command = Command("compare", *words, cwd=tmp_path)
        request.addfinalizer(command.kill)
        return command

    return start


def interrupted(command: Command) -> str:
    """Press Ctrl-C, wait, and return what the command wrote to stderr."""
    command.interrupt()
    process = command.completed()
    assert process.returncode == 130
    assert "Traceback" not in process.stderr
    return process.stderr


def test_ctrl_c_keeps_finished_runs_and_says_how_to_resume(started, tmp_path):
    command = started(*FLAGS, "--workers=2", "--out=cut", "--seeds=20")
    next(line for line in command.lines() if line.startswith("run 3/"))
    errors = interrupted(command)
    finished = int(re.search(r"error: interrupted: (\d+) of 60 runs are complete in cut", errors)[1])
    assert "the same command resumes" in errors
    rounds = load(tmp_path / "cut")["rounds"]
    assert len(rounds) == 3 * finished >= 9  # complete runs only
    assert list((tmp_path / "cut").rglob(".*.part.parquet")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_during_a_write_leaves_no_half_written_table(started, tmp_path, workers):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "import numpy as np\n"
        "from egal_bench.tables import files\n"
        "write = files.pq.write_table\n"
        "def half(table, path, **settings):\n"
        "    if 'unfinished' in Path(path).parts: return write(table, path, **settings)\n"
        "    Path(path).write_text('PAR1')\n"
        "    time.sleep(600)\n"
        "reading = {name: getattr(files.pq, name) for name in ('read_schema', 'ParquetFile')}\n"
        "files.pq = SimpleNamespace(write_table=half, **reading)\n"
        "class Slow:\n"
        "    needs_roi = needs_features = False\n"
        "    def __call__(self, pool): return np.arange(len(pool))\n"
    )
    command = started(*FLAGS, f"--workers={workers}", "--out=cut", "--strategies=slow:Slow")
    while not list(tmp_path.glob("cut/rounds/**/.*.part.parquet")):
        assert command.poll() is None, command.completed().stderr
        time.sleep(0.05)
    assert "0 of 2 runs are complete" in interrupted(command)
    assert [path.name for path in tmp_path.glob("cut/*/dataset=*/**/*.parquet")] == []


@pytest.mark.parametrize(("workers", "seconds"), [(1, 0.5), (2, 0.5), (2, 60)])
def test_ctrl_c_during_a_destructor_is_not_lost(started, tmp_path, workers, seconds):
    (tmp_path / "dying.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "class Object:\n"
        "    def __del__(self):\n"
        "        Path('destructor').touch()\n"
        "        time.sleep(SECONDS)\n"
        "        Path('whole').touch()\n"
        "class Dying:\n"
        "    needs_roi = needs_features = False\n"
        "    def __call__(self, pool):\n"
        "        Object()\n"
        "        time.sleep(60)\n".replace("SECONDS", str(seconds))
    )
    command = started(*FLAGS, f"--workers={workers}", "--out=cut", "--strategies=dying:Dying")
    while not (tmp_path / "destructor").exists():
        assert command.poll() is None, command.completed().stderr
        time.sleep(0.05)
    assert "0 of 2 runs are complete" in interrupted(command)
    assert (tmp_path / "whole").exists() == (seconds < 60)


def test_ctrl_c_is_delivered_once_though_a_destructor_fails_during_clean_up(tmp_path):
    (tmp_path / "failing.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "class Handle:\n"
        "    def __del__(self): raise OSError('closed twice')\n"
        "class Failing:\n"
        "    needs_roi = needs_features = False\n"
        "    def __call__(self, pool):\n"
        "        try:\n"
        "            Path('called').touch()\n"
        "            time.sleep(60)\n"
        "        finally:\n"
        "            Handle()\n"
        "            time.sleep(0.5)\n"
        "            Path('cleaned').touch()\n"
    )
    command = [EGAL_BENCH, "compare", *FLAGS, "--workers=1", "--out=cut", "--strategies=failing:Failing"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "called").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert "closed twice" in errors
    assert errors.splitlines()[-1].startswith("error: interrupted")
    assert (tmp_path / "cleaned").exists()


def test_what_is_done_at_the_exit_is_not_cut_short(tmp_path):
    script = (
        "import atexit, signal, sys, time\n"
        "from egal_bench.interrupts import raised_by\n"
        "def last(): print('exiting', flush=True); time.sleep(0.5); print('done', flush=True)\n"
        "atexit.register(last)\n"
        "atexit.register(last)\n"
        "with raised_by(signal.SIGINT, KeyboardInterrupt): pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "exiting\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert output == "exiting\ndone\n"
    assert errors.rstrip().endswith("KeyboardInterrupt:")  # as Python reports it


def ignore_sigterm(ready) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)


def test_worker_that_ignores_every_signal_is_killed(monkeypatch):
    monkeypatch.setattr(local_engine, "PATIENCE_S", 0.1)
    ready = local_engine.CONTEXT.Event()
    process = local_engine.CONTEXT.Process(target=ignore_sigterm, args=(ready,))
    process.start()
    assert ready.wait(60)
    local_engine.end_processes([process])
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_ctrl_c_during_an_import_does_not_pass_for_a_missing_package(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('imported', flush=True)\ntime.sleep(0.5)\nprint('whole')\n")
    script = (
        "import signal, time\n"
        "from egal_bench.interrupts import raised_by\n"
        "with raised_by(signal.SIGINT, KeyboardInterrupt):\n"
        "    try:\n"
        "        import slow\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt: print('interrupted')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "imported\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "whole\ninterrupted\n"


@pytest.mark.skipif(sys.platform != "linux", reason="workers are loaded ahead on Linux only")
def test_ctrl_c_while_workers_are_loaded_reaches_the_parent_alone():
    script = (
        "import os, signal, time\n"
        "from egal_bench.runs.local_engine import load_ahead\n"
        "load_ahead('frozen')\n"
        "time.sleep(0.7)\n"  # by now the server imports torch
        "try: os.killpg(0, signal.SIGINT)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True)
    assert (process.stdout, process.stderr) == ("interrupted\n", "")


def test_dead_worker_is_named_by_its_run(egal_bench_here, user_module):
    user_module("dies", """
        import os
        class Dies:
            needs_roi = needs_features = False
            def __call__(self, pool): os._exit(9)
        """)  # fmt: skip
    message = error_of(egal_bench_here("compare", *FLAGS, "--workers=2", "--out=out", "--strategies=dies:Dies"))
    assert message.startswith("error: the process of phantom-brain, dies:Dies, seed")
    assert "finished rounds are kept" in message

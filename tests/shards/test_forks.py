"""Work in forked processes: order, errors, and no process that outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from itertools import pairwise
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_shards import ShardError, pack, packing
from egal_shards.forks import can_fork, forked_map
from shards.shard_sets import source

pytestmark = pytest.mark.skipif(not can_fork(), reason="no safe fork on this system")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(delays, workers):
    def work(delay):
        time.sleep(delay / 1000)
        return delay, os.getpid()

    results = list(forked_map(work, delays, workers))
    assert [delay for delay, _ in results] == delays
    assert os.getpid() not in {process for _, process in results}


def test_every_worker_works():
    processes = set(forked_map(lambda _: time.sleep(0.005) or os.getpid(), range(40), 3))
    assert len(processes) == 3


def test_results_larger_than_a_pipe_are_complete():
    sizes = [3 << 20, 1, 5 << 20, 0] * 3
    assert [len(data) for data in forked_map(bytes, sizes, 2)] == sizes


def test_an_error_is_raised_in_order_with_its_traceback():
    def work(i):
        if i == 7:
            raise ShardError("the seventh")
        return i

    results = forked_map(work, range(20), 2)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ShardError, match="the seventh") as caught:
        next(results)
    assert "in work" in caught.value.__notes__[0]


def test_a_killed_worker_is_a_clear_error():
    with pytest.raises(ShardError, match="was killed; free some memory"):
        list(forked_map(lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == 5 else i, range(20), 2))


def test_a_worker_killed_with_a_result_unread_is_a_clear_error():
    """The parent reads the result of the dead worker, and then writes the next order to its closed pipe."""
    results = forked_map(lambda _: os.getpid(), range(100), 1)
    worker = next(results)
    time.sleep(0.1)  # until it has worked on everything in its pipe
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ShardError, match="was killed; free some memory"):
        list(results)


class Peculiar(Exception):
    """An error that cannot be unpickled, since `args` is not what its constructor takes."""

    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


def test_an_error_without_a_pickle_keeps_its_text():
    def work(i):
        raise Peculiar("nothing", "a file")

    with pytest.raises(RuntimeError, match="Peculiar: nothing in a file") as caught:
        list(forked_map(work, range(3), 1))
    assert "in work" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_waiting_results_is_bounded(workers):
    begun = get_context("fork").Value("i", 0)

    def work(i):
        with begun.get_lock():
            begun.value += 1
        time.sleep(0.3 * (i == 0))
        return i

    results = forked_map(work, range(1000), workers)
    assert next(results) == 0
    assert begun.value <= 3 * workers
    results.close()


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_consumer_that_leaves_ends_the_workers():
    results = forked_map(lambda _: os.getpid(), range(1000), 2)
    processes = {next(results) for _ in range(9)}
    results.close()
    assert not any(map(alive, processes))


def test_only_the_parent_handles_ctrl_c():
    script = """
        import time
        from egal_shards.forks import forked_map
        results = forked_map(lambda i: time.sleep(0.05) or i, range(1000), 2)
        next(results), next(results)  # one from each worker
        try:
            print("under way", flush=True)
            list(results)
        except KeyboardInterrupt:
            results.close()
            print("ended", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout.readline() == "under way\n"
            os.killpg(parent.pid, signal.SIGINT)  # to every process, as a terminal does
            assert parent.communicate(timeout=30) == ("ended\n", "")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def test_an_interpreter_that_exits_ends_the_workers():
    script = """
        from egal_shards.forks import forked_map
        results = forked_map(lambda i: i, range(1000), 2)
        next(results)
        raise SystemExit(3)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=30).returncode == 3


def test_a_parent_that_is_killed_leaves_no_process():
    script = """
        import os, time
        from egal_shards.forks import forked_map
        def work(i):
            time.sleep(0.01)
            return os.getpid()
        results = forked_map(work, range(100_000), 2)
        print(*{next(results) for _ in range(9)}, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        processes = list(map(int, parent.stdout.readline().split()))
        parent.kill()
    assert processes
    end = time.monotonic() + 30
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(alive, processes))


def test_processes_and_threads_pack_the_same_bytes(tmp_path, monkeypatch):
    records = source(3 * packing._FORKED)
    forks = []
    monkeypatch.setattr(packing, "cores", lambda: 3)
    monkeypatch.setattr(packing, "forked_map", lambda *args: forks.append(1) or forked_map(*args))
    for name, forked in (("forked", True), ("threads", False)):
        monkeypatch.setattr(packing, "can_fork", lambda forked=forked: forked)
        pack(records, tmp_path / name, size=16, progress=False)
    assert forks == [1]
    files = sorted(path.name for path in (tmp_path / "forked").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "threads").iterdir())
    for name in files:
        assert (tmp_path / "forked" / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_runs_keep_groups_together_where_they_fit(sizes, most):
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    plan = [packing._Planned(record_of(group), "pool", group) for group in groups]
    runs = list(packing._runs(plan, most))
    assert [planned for run in runs for planned in run] == plan
    assert all(1 <= len(run) <= most for run in runs)
    for run, following in pairwise(runs):
        cut = run[-1].unit == following[0].unit
        assert len(run) == most if cut else len(run) >= min(packing._RUN, most)


def record_of(group):
    return packing.Record(group, "a", group, group, lambda: None)

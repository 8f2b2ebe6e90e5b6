"""Numba kernels on PyTorch's threads: how many, that results do not depend on them, and after a fork."""

import threading

import numpy as np
import pytest
import torch
from numba import njit

from egal_kernels import acquire
from egal_kernels.shared import threads
from egal_kernels.shared.threads import each_thread, take, team
from kernels.problems import gradients, scene


@pytest.mark.parametrize("op", ["acquire", "cam_loss"])
def test_the_number_of_threads_changes_no_result(op, thread_count):
    features, weight, bias, roi, classes = scene(13)
    results = []
    for count in (1, 2, 3, 16):
        thread_count(count)
        if op == "acquire":
            results.append(vars(acquire(features, weight, bias, roi, backend="cpu")).values())
        else:
            results.append(gradients(features, weight, roi, classes, backend="cpu"))
        assert torch.get_num_threads() == count
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@njit(error_model="numpy")
def meet(arrived, looks, met, expected):
    """Count this thread in and wait for the others, but not for ever."""
    take(arrived)
    while take(looks) < 1 << 28:
        if arrived[0] == expected:
            take(met)
            return


@njit(nogil=True)
def gather(team, expected):
    """Return how many threads of a team met."""
    arrived, looks, met = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    each_thread(team, meet, (arrived, looks, met, np.int64(expected)))
    return met[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_kernel_runs_on_as_many_threads_as_pytorch(count, thread_count):
    """The threads meet, so they run at the same time; there are never more of them than samples."""
    thread_count(count)
    assert gather(team(100), count) == count
    assert gather(team(1), 1) == 1


def test_without_openmp_one_thread_does_all_the_work(monkeypatch):
    expected = acquire(*scene(9)[:4], backend="cpu")
    monkeypatch.setattr(threads, "_entry", lambda: 0)
    assert team(100) == (0, 1)
    out = acquire(*scene(9)[:4], backend="cpu")
    assert all(torch.equal(getattr(out, name), getattr(expected, name)) for name in vars(out))


def test_concurrent_calls_do_not_affect_each_other():
    problems = [scene(5, 64, 3, 7, 50 + i)[:4] for i in range(4)]
    expected = [acquire(*problem, backend="cpu") for problem in problems]
    wrong = []

    def work(i):
        for _ in range(10):
            out = acquire(*problems[i], backend="cpu")
            if not all(torch.equal(getattr(out, name), getattr(expected[i], name)) for name in vars(out)):
                wrong.append(i)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_forked_child_computes_too(run_script):
    script = """
import os, torch
from egal_kernels import acquire, pack_roi
roi = pack_roi(torch.ones(4, 4, 4, dtype=torch.bool))
torch.set_num_threads(2)
run = lambda: acquire(torch.ones(4, 1, 2, 2), torch.ones(2, 1), None, roi, backend="cpu").roi_area.tolist()
run()
child = os.fork()
if child == 0:
    os._exit(0 if run() == [16] * 4 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run_script(script)

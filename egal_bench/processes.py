"""Runs in processes of their own: tasks go out one at a time, rounds come back, results are files."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import cast

from egal_bench.errors import BenchError
from egal_bench.run import Task, run

# Workers are forked from a process that has loaded what they need and done nothing else, since forking one that has
# used torch's threads may hang; macOS may not fork after loading its frameworks, Windows cannot.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")


def load_ahead(regime: str) -> None:
    """Begin to load what workers of `regime` need, once for all of them, while the caller goes on."""
    if sys.platform == "linux":
        CONTEXT.set_forkserver_preload(["egal_bench.preload", f"egal_bench.{regime}"])
        resource_tracker.ensure_running()  # the server's start would start it, and with that unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is the parent's
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_all(tasks: Sequence[Task], workers: int, report: Callable[[Task, int, int, float], None]) -> None:
    """Carry out `tasks`, `workers` at a time; `report(task, round, labels, accuracy)` after each round.

    An error or an interrupt ends the processes; runs that were finished stay, since each wrote its own files.

    Raises:
        BenchError: what a run raised, or that its process died, naming the run.
    """
    if workers == 1:
        for task in tasks:
            with _named(task):
                run(task, partial(report, task))
        return
    waiting, busy, processes = list(reversed(tasks)), {}, []
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = CONTEXT.Pipe()
            processes.append(CONTEXT.Process(target=_serve, args=(theirs,), daemon=True))
            processes[-1].start()
            theirs.close()
            busy[ours] = waiting.pop()
            ours.send(busy[ours])
        while busy:
            for pipe in cast(list[Connection], wait(list(busy))):
                if (event := _receive(pipe, busy[pipe])) is not None:
                    report(busy[pipe], *event)
                elif waiting:
                    busy[pipe] = waiting.pop()
                    pipe.send(busy[pipe])
                else:
                    del busy[pipe]
                    pipe.close()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextmanager
def _named(task: Task) -> Iterator[None]:
    """Put the run's name before what it says of its input (BenchError, ShardError, arguments of kernels)."""
    try:
        yield
    except ValueError as error:
        raise BenchError(f"{task.dataset}, {task.strategy}, seed {task.seed}: {error}") from error


def _receive(pipe: Connection, task: Task) -> tuple | None:
    """(round, labels, accuracy) of a finished round, or None for a finished run."""
    try:
        found = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise BenchError(
            f"the process of {task.dataset}, {task.strategy}, seed {task.seed} died (out of memory?); "
            "finished runs are kept: run again with fewer --workers"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def _serve(pipe: Connection) -> None:
    """A worker's life: receive a Task, send its rounds and then None, or the exception; until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which takes half-written files away
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            with _named(task):
                run(task, lambda *event: pipe.send(event))
            pipe.send(None)
        except BenchError as error:
            pipe.send(error)
        except Exception:  # a defect: its traceback must reach the person
            pipe.send(RuntimeError(traceback.format_exc()))

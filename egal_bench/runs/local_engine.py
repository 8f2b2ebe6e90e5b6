"""Runs on this machine: in this process, or in worker processes that receive tasks and return tables."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import cast

from egal_bench.errors import BenchError, Defect, RemoteTraceback
from egal_bench.models.process import prepare_process
from egal_bench.runs.engine import USER_ERRORS, named
from egal_bench.runs.run import Report, run
from egal_bench.runs.task import RunTables, Task
from egal_bench.runs.workspace import Workspace

# On Linux, workers are forked from a server process that has loaded what they need and has done nothing else, since
# forking a process that has used PyTorch's threads may hang. macOS must not fork after loading its frameworks, and
# Windows cannot fork.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class RoundReport:
    """A worker's message after each round."""

    round: int
    labels: int
    accuracy: float


@dataclass(frozen=True)
class Failure:
    """A worker's message when a run raised an exception.

    Attributes:
        message: what the exception says, with its type if it is a defect.
        by_user: whether it states a user's mistake.
        traceback: the formatted traceback of the worker.
    """

    message: str
    by_user: bool
    traceback: str


Message = RoundReport | RunTables | Failure


@dataclass(frozen=True)
class LocalEngine:
    """Executes `workers` runs at a time, each in a process of its own; with one worker, in this process."""

    workers: int

    def execute(self, tasks: Iterable[Task], report: Report) -> Iterator[tuple[Task, RunTables]]:
        """Yield each task with its tables once it is finished; see `Engine.execute`.

        An error, an interrupt or the end of the iteration ends the processes.
        """
        return self._in_processes(iter(tasks), report) if self.workers > 1 else self._in_this_process(tasks, report)

    def _in_this_process(self, tasks: Iterable[Task], report: Report) -> Iterator[tuple[Task, RunTables]]:
        prepare_process()
        workspace = Workspace()
        for task in tasks:
            try:
                tables = run(task, workspace, report)
            except USER_ERRORS as error:
                raise named(task, error) from error
            yield task, tables

    def _in_processes(self, tasks: Iterator[Task], report: Report) -> Iterator[tuple[Task, RunTables]]:
        busy: dict[Connection, Task] = {}
        processes = []
        try:
            for _, task in zip(range(self.workers), tasks, strict=False):
                connection, process = _start_worker()
                processes.append(process)
                busy[connection] = task
                connection.send(task)
            while busy:
                for connection in cast(list[Connection], wait(list(busy))):
                    task, message = busy[connection], _receive(connection, busy[connection])
                    if isinstance(message, RoundReport):
                        report(task, message.round, message.labels, message.accuracy)
                        continue
                    yield task, message
                    if (following := next(tasks, None)) is not None:
                        busy[connection] = following
                        connection.send(following)
                    else:
                        del busy[connection]
                        connection.close()
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()


def load_ahead(regime: str) -> None:
    """Start to load what workers of `regime` need, once for all of them, while the caller continues."""
    if sys.platform == "linux":
        CONTEXT.set_forkserver_preload(["egal_bench.runs.preload", f"egal_bench.learners.{regime}"])
        resource_tracker.ensure_running()  # otherwise the server's start would start it, and unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the parent handles Ctrl-C
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> tuple[Connection, multiprocessing.process.BaseProcess]:
    """Start a worker process; return the parent's end of its connection, and the process."""
    parent_end, worker_end = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(worker_end,), daemon=True)
    process.start()
    worker_end.close()
    return parent_end, process


def _receive(connection: Connection, task: Task) -> RoundReport | RunTables:
    """Return the next message of the worker that executes `task`, or raise what its run has raised."""
    try:
        message: Message = connection.recv()
    except (EOFError, ConnectionResetError):
        raise BenchError(
            f"the process of {task.label} died (out of memory?); finished runs are kept: run again with fewer --workers"
        ) from None
    if isinstance(message, Failure):
        raise (BenchError if message.by_user else Defect)(message.message) from RemoteTraceback(
            f"\n{message.traceback}"
        )
    return message


def _serve(connection: Connection) -> None:
    """Execute tasks from `connection` and answer with messages, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that `finally` blocks run
    prepare_process()
    workspace = Workspace()

    def report(task: Task, round_: int, labels: int, accuracy: float) -> None:
        connection.send(RoundReport(round_, labels, accuracy))

    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            connection.send(run(task, workspace, report))
        except Exception as error:
            by_user = isinstance(error, USER_ERRORS)
            message = str(named(task, error)) if by_user else f"{type(error).__name__}: {error}"
            connection.send(Failure(message, by_user, traceback.format_exc()))

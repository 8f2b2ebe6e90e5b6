"""Runs on this machine: in this process, or in worker processes that receive tasks and answer with events."""

from __future__ import annotations

import atexit
import multiprocessing
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import cast

from egal_bench.errors import BenchError, UserCodeError
from egal_bench.interrupts import raised_by
from egal_bench.models.process import prepare_process
from egal_bench.runs.engine import USER_ERRORS, named
from egal_bench.runs.events import Event, RunDone
from egal_bench.runs.messages import Message, event_of, failure_of, messages_of
from egal_bench.runs.run import run
from egal_bench.runs.task import Task
from egal_bench.runs.workspace import Workspace

# On Linux, workers are forked from a server process that has loaded what they need and has done nothing else, since
# forking a process that has used PyTorch's threads may hang. macOS must not fork after loading its frameworks, and
# Windows cannot fork.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")

PATIENCE_S = 30  # for which a worker may clean up
LONGEST_TMPDIR = 60  # characters: the name of a socket has 108, and multiprocessing appends up to 40


@dataclass(frozen=True)
class LocalEngine:
    """Executes `workers` runs at a time, each in a process of its own; with one worker, in this process."""

    workers: int

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Do nothing: this process has checked data and network on this machine when it made the tasks."""

    def execute(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Yield the events of all tasks; see `Engine.execute`.

        An error, an interrupt or the end of the iteration ends the processes.
        """
        return self._in_processes(iter(tasks)) if self.workers > 1 else self._in_this_process(tasks)

    def _in_this_process(self, tasks: Iterable[Task]) -> Iterator[Event]:
        prepare_process()
        workspace = Workspace()
        for task in tasks:
            try:
                yield from run(task, workspace)
            except USER_ERRORS as error:
                raise named(task, error) from error

    def _in_processes(self, tasks: Iterator[Task]) -> Iterator[Event]:
        busy: dict[Connection, Task] = {}
        processes = []
        try:
            for _, task in zip(range(self.workers), tasks, strict=False):
                connection, process = _start_worker()
                processes.append(process)
                busy[connection] = task
                _send(connection, task)
            while busy:
                for connection in cast(list[Connection], wait(list(busy))):
                    event = _receive(connection, busy[connection])
                    yield event
                    if isinstance(event, RunDone):
                        if (following := next(tasks, None)) is not None:
                            busy[connection] = following
                            _send(connection, following)
                        else:
                            del busy[connection]
                            connection.close()
        finally:
            for connection in busy:
                connection.close()  # a worker that outlasts SIGTERM ends when it sends or receives
            end_processes(processes)


def load_ahead(regime: str) -> None:
    """Start to load what workers of `regime` need, once for all of them, while the caller continues."""
    if sys.platform == "linux":
        _use_short_socket_names()
        CONTEXT.set_forkserver_preload(["egal_bench.runs.preload", f"egal_bench.learners.{regime}"])
        resource_tracker.ensure_running()  # otherwise the server's start would start it, and unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the parent handles Ctrl-C
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _use_short_socket_names() -> None:
    """Let multiprocessing create its sockets in a folder with a short name where TMPDIR is too long for them."""
    if len(tempfile.gettempdir()) > LONGEST_TMPDIR:
        settings = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        if "tempdir" not in settings:
            settings["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
            atexit.register(shutil.rmtree, settings["tempdir"], ignore_errors=True)


def _start_worker() -> tuple[Connection, multiprocessing.process.BaseProcess]:
    """Start a worker process; return the parent's end of its connection, and the process."""
    _use_short_socket_names()
    parent_end, worker_end = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(worker_end,), daemon=True)
    process.start()
    worker_end.close()
    return parent_end, process


def end_processes(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """End worker processes: by SIGTERM, by another one where code of the user has swallowed it, or else by SIGKILL."""
    for end in ("terminate", "terminate", "kill"):
        for process in processes:
            getattr(process, end)()
        latest = monotonic() + PATIENCE_S
        for process in processes:
            process.join(max(latest - monotonic(), 0))
        processes = [process for process in processes if process.is_alive()]


def _send(connection: Connection, task: Task) -> None:
    """Send `task` to a worker; one that has died is reported by `_receive`."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send(task)


def _receive(connection: Connection, task: Task) -> Event:
    """Return the next event of the worker that executes `task`, or raise what its run has raised."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionResetError):
        raise BenchError(
            f"the process of {task.run} died (out of memory?); finished rounds are kept: run again with fewer --workers"
        ) from None
    return event_of(message, task)


class _Terminated(KeyboardInterrupt):
    """The parent has sent SIGTERM. A strategy that it interrupts does not take it for a mistake of the user's code."""


def _serve(connection: Connection) -> None:
    """Execute tasks from `connection` and answer with their events, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's may be to ignore it
    with suppress(_Terminated), raised_by(signal.SIGTERM, _Terminated):  # so that `finally` blocks run
        prepare_process()
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            _answer(connection)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process ends now, whatever comes


def _answer(connection: Connection) -> None:
    """Execute the tasks that come, without end; raise an error of the connection once it is closed."""
    workspace = Workspace()
    while True:
        for message in _messages(connection.recv(), workspace):
            connection.send(message)


def _messages(task: Task, workspace: Workspace) -> Iterator[Message]:
    """Yield what `messages_of` yields; where the user's own code ends the process, the failure that says so."""
    try:
        yield from messages_of(task, workspace)
    except (_Terminated, GeneratorExit):
        raise
    except BaseException as error:  # such as KeyboardInterrupt: Ctrl-C does not reach a worker
        yield failure_of(task, UserCodeError.of("your own code", error))

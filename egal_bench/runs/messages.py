"""What a worker, a process on this machine or on another one, says to the process that has sent it a task."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from egal_bench.errors import BenchError, Defect, RemoteTraceback
from egal_bench.runs.engine import USER_ERRORS, named
from egal_bench.runs.events import Event, RoundDone, RunDone
from egal_bench.runs.run import run
from egal_bench.runs.task import Task
from egal_bench.runs.workspace import Workspace


@dataclass(frozen=True)
class Failure:
    """A run has raised an exception.

    Attributes:
        message: what the exception says, with its type if it is a defect.
        by_user: whether it states a user's mistake.
        traceback: the formatted traceback of the worker.
    """

    message: str
    by_user: bool
    traceback: str


# The class of an event or of a failure, and the arguments that make it, without the task, which the receiver knows.
Message = tuple[type, tuple[Any, ...]]


def messages_of(task: Task, workspace: Workspace) -> Iterator[Message]:
    """Execute `task` and yield its events, or at last its failure, as messages."""
    try:
        for event in run(task, workspace):
            content = (event.tables, event.files) if isinstance(event, RoundDone) else (event.files, event.hardware)
            yield type(event), content
    except Exception as error:
        yield failure_of(task, error)


def failure_of(task: Task, error: Exception) -> Message:
    """Return the message that executing `task` has raised `error`; call this where `error` is handled."""
    by_user = isinstance(error, USER_ERRORS)
    text = str(named(task, error)) if by_user else f"{type(error).__name__}: {error}"
    return Failure, (text, by_user, traceback.format_exc())


def event_of(message: Message, task: Task) -> Event:
    """Return the event that a worker reports of `task`, or raise what its run has raised.

    Raises:
        BenchError: a user made a mistake.
        Defect: any other exception. The cause of either is the traceback of the worker.
    """
    kind, content = message
    if kind is RoundDone:
        return RoundDone(task, *content)
    if kind is RunDone:
        return RunDone(task, *content)
    failure = Failure(*content)
    error = BenchError if failure.by_user else Defect
    raise error(failure.message) from RemoteTraceback(f"\n{failure.traceback}")

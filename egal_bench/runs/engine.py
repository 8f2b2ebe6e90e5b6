"""The protocol of an engine: what executes the runs of a comparison, on this machine or on others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from egal_bench.errors import BenchError
from egal_bench.runs.events import Event
from egal_bench.runs.task import Task
from egal_kernels.errors import ArgumentError
from egal_shards import ShardError

USER_ERRORS = (BenchError, ShardError, ArgumentError)  # whatever else a run raises is a defect


class Engine(Protocol):
    """Executes tasks and reports their rounds as rows, so that only the caller writes results."""

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Raise BenchError where a machine that is to execute one of the tasks lacks something that they need."""
        ...

    def execute(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Yield the events of all tasks. Those of one task come in order; those of different tasks may alternate.

        Args:
            tasks: the engine takes the next task only when its run can start, or soon can.

        Raises:
            BenchError: a user made a mistake, and the message names the run; or a process or machine died.
            Exception: a defect; its cause holds the traceback of the place where it was raised.
        """
        ...


def named(task: Task, error: Exception) -> BenchError:
    """Return a user's mistake with the name of the run before its message."""
    return BenchError(f"{task.run}: {error}")

"""The protocol of an engine: what executes the runs of a comparison, on this machine or on others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from egal_kernels.errors import ArgumentError

from egal_bench.errors import BenchError
from egal_bench.runs.run import Report
from egal_bench.runs.task import RunTables, Task
from egal_shards import ShardError

USER_ERRORS = (BenchError, ShardError, ArgumentError)  # whatever else a run raises is a defect


class Engine(Protocol):
    """Executes tasks and returns their tables as rows, so that only the caller writes files of results."""

    def execute(self, tasks: Iterable[Task], report: Report) -> Iterator[tuple[Task, RunTables]]:
        """Yield each task with its tables once it is finished, in any order.

        Args:
            tasks: taken one at a time, when a run can start.
            report: called with (task, round, labels, accuracy) after each round.

        Raises:
            BenchError: a user's mistake in a run, with the name of the run; or a process or machine died.
            Exception: a defect, with the traceback of the place where it was raised as its cause.
        """
        ...


def named(task: Task, error: Exception) -> BenchError:
    """Return a user's mistake with the name of the run before its message."""
    return BenchError(f"{task.label}: {error}")

"""What an engine reports of a run: each finished round with its rows, and the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from egal_bench.runs.task import Task
from egal_bench.tables.folder import RunTables


@dataclass(frozen=True, eq=False)
class RoundDone:
    """A round of `task` is finished.

    Attributes:
        task: the run.
        tables: the rows that this round adds to each table, the samples that it has bought included.
        files: content by name of files that the next round needs if it is executed elsewhere or later.
    """

    task: Task
    tables: RunTables
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunDone:
    """All rounds of `task` are finished.

    Attributes:
        task: the run.
        files: content by name of the files that the run leaves, such as its network.
        hardware: the machine that executed the last round; see `tables.environment.hardware`.
    """

    task: Task
    files: Mapping[str, bytes]
    hardware: Mapping[str, Any]


Event = RoundDone | RunDone

"""Executing the tasks of a comparison: which runs are missing, who executes them, and writing their tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from egal_bench.console import say
from egal_bench.errors import BenchError, Interrupted
from egal_bench.runs.checkpoint import Checkpoint, stored_history
from egal_bench.runs.engine import Engine
from egal_bench.runs.events import RoundDone, RunDone
from egal_bench.runs.progress import GridProgress, progress_of
from egal_bench.runs.task import History, Task
from egal_bench.strategies import find
from egal_bench.tables.folder import EARLIER, NETWORK, ResultsFolder
from egal_bench.tables.locks import POLL, Lock
from egal_bench.tables.schemas import OPTIONAL
from egal_bench.tables.settings import difference
from egal_shards.urls import shown

REPEATED = {"source", "backbone_source"}  # where only these differ, the user has edited the code: the run is repeated


class State(Enum):
    """What a results folder holds of a task."""

    ABSENT = "absent"
    FINISHED = "finished"
    WITHOUT_FILES = "finished without a table or network that is to be kept now"
    DAMAGED = "damaged"
    SHORTER = "with fewer rounds"
    EDITED = "made with another version of the user's own code"
    OTHER = "made with other settings"


def state_of(task: Task, folder: ResultsFolder) -> State:
    """Return what `folder` holds of `task`."""
    try:
        record = folder.record(task.run)
    except BenchError:
        return State.DAMAGED
    if record is None:
        return State.ABSENT
    if record["config_hash"] == task.config_hash:
        if not folder.is_intact(task.run):
            return State.DAMAGED
        if record["last_round"] < task.config.rounds:
            return State.SHORTER
        return State.FINISHED if _has_files(task, folder) else State.WITHOUT_FILES
    differing = {
        name for name in record["settings"] | task.settings if _differs(name, record["settings"], task.settings)
    }
    return State.EDITED if differing <= REPEATED else State.OTHER


def _has_files(task: Task, folder: ResultsFolder) -> bool:
    """Return whether a finished run has every table and network that the comparison keeps."""
    network = folder.network(task.run).is_file() or not task.config.save_network
    expected = set(task.config.keep) - (set() if task.config.rounds else {"pool"})  # without a query there is no pool
    return network and expected <= set(folder.kept(task.run))


def _differs(name: str, one: Any, other: Any) -> bool:
    return one.get(name) != other.get(name)


def check_replaceable(tasks: Sequence[Task], folder: ResultsFolder) -> None:
    """Raise BenchError where a run in `folder` has the name of a task, but other settings."""
    for task in tasks:
        if state_of(task, folder) is State.OTHER:
            record = folder.record(task.run)
            assert record is not None
            changes = ", ".join(difference(record["settings"], task.settings))
            how = "by an earlier version of egal-bench" if record == EARLIER else f"with other settings: {changes}"
            raise BenchError(
                f"{folder.path} holds {task.run} {how}; compare into another --out, or give --replace to recompute it"
            )


def execute(tasks: Sequence[Task], engine: Engine, folder: ResultsFolder) -> None:
    """Execute the tasks whose runs are not finished in `folder`, and write their tables there.

    Processes that share the folder share the work: each run is claimed by a lock that ends with its process.

    Raises:
        Interrupted: Ctrl-C; finished rounds are kept.
    """
    states = {task: state_of(task, folder) for task in tasks}
    pending = [task for task, state in states.items() if not _is_done(state, task)]
    _announce(list(states.values()), folder)
    try:
        if pending:
            engine.prepare(pending)
        with progress_of(pending) as progress:
            while pending:
                session = _Session(pending, folder, progress)
                session.execute(engine)
                pending = _wait(session.claimed_elsewhere, folder)
    except KeyboardInterrupt:
        done = len(tasks) - unfinished(tasks, folder)
        raise Interrupted(
            f"interrupted: {done} of {len(tasks)} runs are complete in {folder.path}; the same command resumes"
        ) from None


@dataclass
class _Session:
    """One pass over the pending tasks: every run that no other process has claimed is executed."""

    pending: Sequence[Task]
    folder: ResultsFolder
    progress: GridProgress

    def __post_init__(self) -> None:
        self.claims: dict[str, Lock] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.claimed_elsewhere: list[Task] = []

    def execute(self, engine: Engine) -> None:
        with ExitStack() as cleanup:
            cleanup.callback(self._release)
            for event in engine.execute(self._claimed()):
                if isinstance(event, RoundDone):
                    self.checkpoints[str(event.task.run)].add(event.tables, event.files)
                    self.progress.round_done(event.task, event.tables["rounds"][-1])
                else:
                    self._finish(event)

    def _release(self) -> None:
        for lock in self.claims.values():
            lock.release()

    def _claimed(self) -> Iterator[Task]:
        """Yield the tasks that this process has claimed, each with its history."""
        for task in self.pending:
            lock = self.folder.claim(task.run)
            if lock is None:
                self.claimed_elsewhere.append(task)
                continue
            if _is_done(state_of(task, self.folder), task):  # another process has just finished it
                lock.release()
                self.progress.run_done(task)
                continue
            history = _history(task, self.folder)
            self.claims[str(task.run)] = lock
            stored = task.config.regime == "finetune"
            self.checkpoints[str(task.run)] = Checkpoint(self.folder.path, task.scratch, history, stored)
            self.progress.resumed(task, history)
            yield replace(task, history=history)

    def _finish(self, event: RunDone) -> None:
        task, name = event.task, str(event.task.run)
        network = event.files.get(NETWORK)
        self.folder.write(task.run, self.checkpoints.pop(name).tables, record_of(event), network)
        self.folder.remove_scratch(task.run, task.config_hash)
        self.claims.pop(name).release()
        self.progress.run_done(task)


def unfinished(tasks: Sequence[Task], folder: ResultsFolder) -> int:
    """Return how many of the tasks are not finished."""
    return sum(state_of(task, folder) not in (State.FINISHED, State.WITHOUT_FILES) for task in tasks)


def _is_done(state: State, task: Task) -> bool:
    """Return whether nothing is left to execute of a task in this state."""
    return state is State.FINISHED or (state is State.WITHOUT_FILES and not task.config.replace)


def record_of(event: RunDone) -> dict[str, Any]:
    """Return the record that the files of a finished run carry."""
    task = event.task
    return {
        "config_hash": task.config_hash, "settings": dict(task.settings), "last_round": task.config.rounds,
        "shards": shown(task.shards), "hardware": dict(event.hardware),
        "needs": sorted(find(task.run.strategy).needs),
    }  # fmt: skip


def _history(task: Task, folder: ResultsFolder) -> History | None:
    """Return the rounds of `task` that are finished: those of an interrupted run, or of a run with fewer rounds."""
    history = stored_history(task.scratch)
    if history is None and state_of(task, folder) is State.SHORTER and not task.config.warm_start:
        history = History(folder.tables(task.run))
    if history is None or history.last_round > task.config.rounds:
        return None
    queried = any(row["round"] > 0 for row in history.tables["selections"])
    expected = [table for table in OPTIONAL if table in task.config.keep and (queried or table != "pool")]
    kept = all(history.tables.get(table) for table in expected)
    return history if kept else None  # rounds without a table that is to be kept now are repeated


def _announce(states: Sequence[State], folder: ResultsFolder) -> None:
    """Say which runs are there already, and why others are executed again."""
    for state, text in (
        (State.FINISHED, "are already in {path}: skipped"),
        (State.WITHOUT_FILES, "in {path} lack what --keep or --save-network asks for; --replace recomputes them"),
        (State.DAMAGED, "in {path} have a damaged table: recomputed"),
        (State.SHORTER, "in {path} have fewer rounds: continued"),
        (State.EDITED, "in {path} were made with an earlier version of your own code: recomputed and replaced"),
        (State.OTHER, "in {path} were made with other settings, data or version: recomputed and replaced (--replace)"),
    ):
        if number := states.count(state):
            say(f"{number} of {len(states)} runs {text.format(path=folder.path)}")


def _wait(claimed: Sequence[Task], folder: ResultsFolder) -> list[Task]:
    """Return the tasks of `claimed` that are still to be executed, once another process has finished or left one."""
    if claimed:
        runs = "1 run" if len(claimed) == 1 else f"{len(claimed)} runs"
        say(f"waiting for {runs} that another process executes in {folder.path}")
    while claimed:
        for task in claimed:
            lock = folder.claim(task.run)
            if lock is not None:
                lock.release()
                return [task for task in claimed if not _is_done(state_of(task, folder), task)]
        time.sleep(POLL)
    return []

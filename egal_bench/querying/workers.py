"""Shards handed out to processes of this machine, or scored in this one."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from egal_bench.errors import BenchError, Defect, RemoteTraceback
from egal_bench.models.process import prepare_process
from egal_bench.querying.score_shard import NotFiniteError, score_shard
from egal_bench.querying.shard_task import ShardTask
from egal_bench.runs.engine import USER_ERRORS
from egal_bench.runs.local_engine import CONTEXT, end_processes
from egal_shards import ShardError
from egal_shards.index import Index

Work = tuple[ShardTask, Index]


class Outcome(Enum):
    """What became of a shard."""

    SCORED = "scored"
    ELSEWHERE = "another process is scoring it"
    DAMAGED = "it is damaged, cannot be read or has a sample without finite output"


def outcomes(work: Iterable[Work], workers: int) -> Iterator[tuple[ShardTask, Outcome, str]]:
    """Yield each task with its outcome, as the shards finish, and what is wrong with a damaged shard.

    Args:
        work: shards with their rows of the index, taken one at a time, as workers become free.
        workers: processes; 1: this process.

    Raises:
        BenchError: an error that does not lie in one shard, or a worker that died. All workers are ended.
    """
    return _in_processes(iter(work), workers) if workers > 1 else _here(work)


def _here(work: Iterable[Work]) -> Iterator[tuple[ShardTask, Outcome, str]]:
    prepare_process()
    return ((task, *_outcome(task, rows)) for task, rows in work)


def _outcome(task: ShardTask, rows: Index) -> tuple[Outcome, str]:
    try:
        return (Outcome.SCORED if score_shard(task, rows) else Outcome.ELSEWHERE), ""
    except (ShardError, NotFiniteError) as error:
        return Outcome.DAMAGED, str(error)


def _in_processes(work: Iterator[Work], workers: int) -> Iterator[tuple[ShardTask, Outcome, str]]:
    busy: dict[Connection, ShardTask] = {}
    processes = []
    finished = False
    try:
        for _, shard in zip(range(workers), work, strict=False):
            connection, worker_end = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(worker_end,), daemon=True)
            processes.append(process)
            process.start()
            worker_end.close()
            busy[connection] = shard[0]
            _send(connection, shard)
        while busy:
            for connection in cast(list[Connection], wait(list(busy))):
                task = busy.pop(connection)
                outcome, message = _receive(connection, task)
                if (following := next(work, None)) is not None:
                    busy[connection] = following[0]
                    _send(connection, following)
                else:
                    connection.close()
                yield task, outcome, message
        finished = True  # and each worker ends, since its connection is closed
    finally:
        if not finished:
            end_processes(processes)
        for process in processes:
            process.join()


def _send(connection: Connection, shard: Work) -> None:
    """Send a shard to a worker; one that has died is reported by `_receive`."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send(shard)


def _receive(connection: Connection, task: ShardTask) -> tuple[Outcome, str]:
    """Return the outcome of `task`, or raise what its worker has raised."""
    try:
        answer: Any = connection.recv()
    except (EOFError, ConnectionResetError):
        raise BenchError(
            f"{task.name}: the process that scored it died (out of memory?); finished shards are kept: run the same "
            "command again with fewer --workers"
        ) from None
    return read_answer(answer)


def answer_of(task: ShardTask, rows: Index) -> Any:
    """Return the outcome of scoring a shard, or what `read_answer` raises an error from, as plain values."""
    try:
        return _outcome(task, rows)
    except Exception as error:
        by_user = isinstance(error, USER_ERRORS)
        return by_user, str(error) if by_user else f"{type(error).__name__}: {error}", traceback.format_exc()


def read_answer(answer: Any) -> tuple[Outcome, str]:
    """Return the outcome that `answer_of` gave in a worker, or raise what the worker has raised."""
    if isinstance(answer[0], Outcome):
        return answer
    by_user, message, text = answer
    raise (BenchError if by_user else Defect)(message) from RemoteTraceback(f"\n{text}")


def _serve(connection: Connection) -> None:
    """Score the shards that come from `connection`, until it closes; the parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_process()
    while True:
        try:
            task, rows = connection.recv()
        except EOFError:
            return
        connection.send(answer_of(task, rows))

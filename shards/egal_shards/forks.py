"""Work spread over forked processes, with results in the order of the items.

Python code in threads takes turns at the interpreter lock; forked processes run at the same time.
"""

import fcntl
import gc
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from copy import copy
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from egal_shards.errors import ShardError

A = TypeVar("A")
B = TypeVar("B")

_QUEUED = 2  # items that a worker has at a time, so that it need not wait for its next one
_AHEAD = 3  # items per worker that may be sent out before the oldest result arrives
_PIPE = 1 << 20  # bytes of results that a worker can write before it has to wait for the parent


def can_fork() -> bool:
    """Return whether this process may fork workers.

    Forks are unsafe on macOS, unknown to Windows, and not allowed to a daemonic process.
    """
    return sys.platform == "linux" and not current_process().daemon


def forked_map(work: Callable[[A], B], items: Sequence[A], workers: int) -> Generator[B, None, None]:
    """Yield work(item) for each item, in the order of the items.

    Workers inherit `work` and `items` by the fork, so neither is pickled; results are. An error of `work` is raised in
    the place of its result. The workers end when the consumer closes the generator or dies. Raises ShardError where a
    worker is killed.

    Args:
        work: Called in a worker for each item.
        items: Items to work on.
        workers: Number of processes.
    """
    context = get_context("fork")
    orders = [context.Pipe(duplex=False) for _ in range(workers)]
    results = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = []
    for i in range(workers):
        own_ends = orders[i][0], results[i][1]
        other_ends = [end for pipe in (*orders, *results) for end in pipe if end not in own_ends]
        # Python waits at its exit for every child that is not a daemon, also where this generator was never closed
        processes.append(context.Process(target=_serve, args=(work, items, *own_ends, other_ends), daemon=True))
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers ignore it from their start on
        try:
            for process in processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for order, result in zip(orders, results, strict=True):
            order[0].close()
            result[1].close()
            with suppress(OSError):  # the system allows this user no larger pipe
                fcntl.fcntl(result[0], fcntl.F_SETPIPE_SZ, _PIPE)
        yield from _in_order(len(items), [order[1] for order in orders], [result[0] for result in results])
    finally:
        for process in processes:
            if process.pid:
                process.kill()
                process.join()
        for pipe in (*orders, *results):
            for end in pipe:
                end.close()


def _in_order(count: int, orders: list[Connection], results: list[Connection]) -> Generator[Any, None, None]:
    """Send the numbers of the items to the workers, the least busy first, and yield the results by number."""
    done: dict[int, tuple[Any, Exception | None]] = {}
    under_way, begun = [0] * len(orders), 0
    for number in range(count):
        while number not in done:
            for i in sorted(range(len(orders)), key=under_way.__getitem__):
                while under_way[i] < _QUEUED and begun < min(count, number + _AHEAD * len(orders)):
                    with suppress(BrokenPipeError):  # the worker was killed: `_received` will raise
                        orders[i].send(begun)
                    begun, under_way[i] = begun + 1, under_way[i] + 1
            ready = wait([results[i] for i in range(len(results)) if under_way[i]])
            for i in range(len(results)):
                if results[i] in ready:
                    finished, value, error = _received(results[i])
                    done[finished] = value, error
                    under_way[i] -= 1
        value, error = done.pop(number)
        if error is not None:
            raise error
        yield value


def _received(result: Connection) -> tuple[int, Any, Exception | None]:
    """Return (number of the item, value, error) from a worker."""
    try:
        return result.recv()
    except (EOFError, ConnectionError):
        raise ShardError("a process that read images was killed; free some memory, then run it again") from None


def _serve(
    work: Callable[[A], B], items: Sequence[A], orders: Connection, results: Connection, other_ends: list[Connection]
) -> None:
    """Work as a worker until the parent closes the pipes or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    gc.freeze()  # else the collector would visit all objects of the parent, and so copy their pages
    for end in other_ends:
        end.close()  # else a pipe would stay open after the process at its other end has died
    with suppress(EOFError, BrokenPipeError):
        while True:
            number = orders.recv()
            value, error = None, None
            try:
                value = work(items[number])
            except Exception as caught:
                error = _portable(caught)
            results.send((number, value, error))


def _portable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, since a pickle leaves the traceback out.

    An error that cannot be pickled becomes a RuntimeError with its text.
    """
    try:
        portable = copy(error)  # made from its arguments, as unpickling will do
        pickle.dumps(portable)
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note("".join(traceback.format_tb(error.__traceback__)))
    return portable

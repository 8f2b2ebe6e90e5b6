"""Work spread over forked processes, whose results come back in order: what Python does in threads takes turns."""

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

_GIVEN = 2  # items given to a worker at a time, so that it need not wait for the next
_AHEAD = 3  # items a worker that may be given before the oldest is there
_PIPE = 1 << 20  # bytes of results that wait for the parent without holding up their worker


def can_fork() -> bool:
    """Elsewhere forks are unsafe (macOS), unknown (Windows), or not allowed to a process (a daemon)."""
    return sys.platform == "linux" and not current_process().daemon


def forked_map(work: Callable[[A], B], items: Sequence[A], workers: int) -> Generator[B, None, None]:
    """work(item) for each item, in the order of the items; work and items get to the workers by fork, unpickled.

    An error of `work` is raised when its turn comes. ShardError where a worker is killed. A consumer that leaves, or
    dies, ends the workers.
    """
    context = get_context("fork")
    orders = [context.Pipe(duplex=False) for _ in range(workers)]
    results = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = []
    for i in range(workers):
        theirs = orders[i][0], results[i][1]
        foreign = [end for pipe in (*orders, *results) for end in pipe if end not in theirs]
        # A daemon: an interpreter that ends without closing this generator would else wait for it for ever
        processes.append(context.Process(target=_serve, args=(work, items, *theirs, foreign), daemon=True))
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a worker is to ignore from the start
        try:
            for process in processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for order, result in zip(orders, results, strict=True):
            order[0].close()
            result[1].close()
            with suppress(OSError):  # beyond what a user may have
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
    done: dict[int, tuple[Any, Exception | None]] = {}
    under_way, begun = [0] * len(orders), 0
    for number in range(count):
        while number not in done:
            for i in sorted(range(len(orders)), key=under_way.__getitem__):
                while under_way[i] < _GIVEN and begun < min(count, number + _AHEAD * len(orders)):
                    with suppress(BrokenPipeError):  # of a worker that was killed: `_received` says so
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
    try:
        return result.recv()
    except (EOFError, ConnectionError):
        raise ShardError("a process that read images was killed; was memory short? run it again") from None


def _serve(
    work: Callable[[A], B], items: Sequence[A], orders: Connection, results: Connection, foreign: list[Connection]
) -> None:
    """What a worker does, until its parent closes the pipes or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the parent ends this one
    gc.freeze()  # else collections would look through all that the parent has, and by that copy its pages
    for end in foreign:
        end.close()  # else a pipe would outlive the process at its other end
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
    """The error with its traceback as a note, since pickling leaves that out; another where it has no pickle."""
    try:
        portable = copy(error)  # made anew of its arguments, as on arrival
        pickle.dumps(portable)
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note("".join(traceback.format_tb(error.__traceback__)))
    return portable

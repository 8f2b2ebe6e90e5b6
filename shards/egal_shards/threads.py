"""Work spread over threads, with results in the order of the items."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_worker = threading.local()


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Generator[B, None, None]:
    """Yield function(item) for each item, in the order of the items.

    When an item fails, or the consumer closes the generator, items that have not begun are cancelled, and `unwanted`
    is true in the threads of those that have.

    Args:
        function: Called in a thread for each item.
        items: Read one by one, in the thread of the consumer.
        workers: Number of threads.
        ahead: Items that may be submitted before the oldest result is taken.
    """
    consumer_left = threading.Event()
    pool = ThreadPoolExecutor(workers, initializer=setattr, initargs=(_worker, "consumer_left", consumer_left))
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        consumer_left.set()
        pool.shutdown(cancel_futures=True)


def unwanted() -> bool:
    """Return whether the consumer of the `ordered_map` that this thread works for has left.

    Long work asks this from time to time in order to end early.
    """
    return hasattr(_worker, "consumer_left") and _worker.consumer_left.is_set()

"""Work spread over threads whose results come back in order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_this = threading.local()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Generator[B, None, None]:
    """function(item) for each item, in the order of the items, with at most `ahead` + 1 of them under way.

    An error or the consumer's leaving cancels what has not begun, and makes what has `unwanted`.
    """
    left = threading.Event()
    pool = ThreadPoolExecutor(workers, initializer=setattr, initargs=(_this, "left", left))
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        left.set()
        pool.shutdown(cancel_futures=True)


def unwanted() -> bool:
    """Whether the consumer of the `ordered_map` that this thread works for has left: long work may end early."""
    return hasattr(_this, "left") and _this.left.is_set()

"""Work spread over threads whose results come back in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Generator[B, None, None]:
    """function(item) for each item, in the order of the items, with at most `ahead` + 1 of them under way.

    An error or the consumer's leaving cancels what has not begun.
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

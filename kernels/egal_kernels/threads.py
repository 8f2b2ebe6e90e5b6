"""Threads of the CPU backends: each takes a range of the batch, or one sample after another.

The threads are Python's, torch.get_num_threads() of them, since the kernels hold no GIL: Numba's own threading layers
abort when a process forks (OpenMP) or calls from two threads (workqueue), and their thread count is global state.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch


def race(batch: int, part: Callable[[np.ndarray], object]) -> None:
    """part(taken) in each of PyTorch's threads; `taken`, int64 [1], counts the samples that they have taken.

    A core may be busy (OpenMP's workers spin for a while after each of PyTorch's own operations): a thread that has not
    begun when the others are done is not waited for.
    """
    taken = np.zeros(1, np.int64)
    others = max(0, min(torch.get_num_threads(), batch) - 1)
    waiting = [_pool(others).submit(part, taken) for _ in range(others)]
    part(taken)
    for future in waiting:
        if not future.cancel():
            future.result()


def share(batch: int, part: Callable[[int, int], object]) -> None:
    """part(start, stop) over [0, batch), a range for each of PyTorch's threads."""
    threads = max(1, min(torch.get_num_threads(), batch))
    cuts = [batch * i // threads for i in range(threads + 1)]
    waiting = [_pool(threads - 1).submit(part, i, j) for i, j in pairwise(cuts[1:])]
    part(0, cuts[1])
    for future in waiting:
        future.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "egal_kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads

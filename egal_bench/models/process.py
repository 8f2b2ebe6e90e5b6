"""The settings of the whole process on which results or speed depend, each set in one place."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def prepare_process() -> None:
    """Set what CUDA and glibc read once per process; call this before the first use of the device.

    cuBLAS gives one result per seed only with a fixed workspace. glibc keeps freed memory from here on: otherwise it
    returns large blocks to the system and fetches fresh pages for the maps of each layer of each batch, and on a CPU
    those page faults take up to a third of a forward pass.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def reproducible(threads: int, *, tf32: bool = False) -> Iterator[None]:
    """Make PyTorch deterministic and limit PyTorch and BLAS to `threads` CPU threads, until the block ends.

    Args:
        threads: CPU threads.
        tf32: whether CUDA may round the inputs of float32 products to TF32, in convolutions and matrix products.
    """
    import torch

    before, determinism = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    debugging: Any = torch.utils.deterministic  # its attribute is a property that type checkers cannot see
    filling = debugging.fill_uninitialized_memory
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(threads)
    # "warn" instead of use_deterministic_algorithms, which would load the compiler and take seconds
    torch.set_deterministic_debug_mode("warn")
    # In this mode PyTorch also fills each new tensor with NaN, to reveal code that reads what it has not written. That
    # is another pass over memory per operation, and nothing here reads such tensors.
    debugging.fill_uninitialized_memory = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_deterministic_debug_mode(determinism)
        debugging.fill_uninitialized_memory = filling
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products

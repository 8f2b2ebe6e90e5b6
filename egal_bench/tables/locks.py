"""Locks between processes that share a folder: each ends with its process, however that ends.

The locks are flock(2) on files in the folder. On one machine they always hold. On NFS they hold between machines
where the mount supports locks (NFSv4, or NFSv3 with lockd; not `nolock`); a crashed machine's locks end with its lease.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from egal_bench.errors import BenchError

FOLDER = ".locks"
POLL = 0.2  # seconds between two attempts


class Lock:
    """A lock that this process holds until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        # unlocked explicitly: a process that was forked meanwhile would keep the lock alive beyond close
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def try_lock(folder: Path, name: str) -> Lock | None:
    """Return the lock `name` of `folder`, or None while another process holds it.

    Raises:
        BenchError: the file system has no locks.
    """
    locks = folder / FOLDER
    locks.mkdir(parents=True, exist_ok=True)
    file = locks / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise BenchError(
            f"{folder}: its file system has no locks ({error.strerror}), which keep processes apart; choose a folder "
            "on another one"
        ) from None
    return Lock(descriptor)


@contextmanager
def locked(folder: Path, name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `name` of `folder` during the block; `on_wait` is called once if another process holds it."""
    lock = try_lock(folder, name)
    if lock is None:
        on_wait()
    while lock is None:
        time.sleep(POLL)
        lock = try_lock(folder, name)
    try:
        yield
    finally:
        lock.release()

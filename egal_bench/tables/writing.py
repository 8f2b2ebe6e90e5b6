"""Work on a results folder whose file system may be full, or away for a while, as network file systems may be."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from egal_bench.console import say
from egal_bench.errors import BenchError

T = TypeVar("T")
WAITS = (1, 2, 4, 8, 16, 32, 64)  # seconds before each further attempt: two minutes in total
# What system calls report while a network file system is away; ENOENT, where its mount point is empty meanwhile.
AWAY = {errno.ESTALE, errno.EIO, errno.ENOENT, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}


def patiently(folder: Path, action: Callable[[], T]) -> T:
    """Return what `action` returns, which reads or writes below `folder`; repeat it while the file system is away.

    A folder that is absent counts as away: the action must not create it again where it should be mounted.

    Args:
        folder: the results folder.
        action: may be called again after it has raised OSError.

    Raises:
        BenchError: the disk is full, the folder may not be written, or the file system has stayed away.
    """
    for wait in (*WAITS, None):
        try:
            if not folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return action()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.errno not in AWAY or wait is None:
                fix = (
                    "free some space"
                    if error.errno in (errno.ENOSPC, errno.EDQUOT)
                    else "make the folder writable again"
                )
                raise BenchError(
                    f"{folder}: {reason}: {fix}; finished rounds are kept, and the same command resumes"
                ) from error
            if wait == WAITS[0]:
                say(f"{folder}: {reason}; trying again for {sum(WAITS) // 60} minutes")
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")

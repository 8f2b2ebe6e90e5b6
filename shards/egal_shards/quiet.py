"""Silence for the warnings of libraries that decode files: each fact that matters is told in this package's words."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_MODULES = r"(PIL|pydicom|pylibjpeg|libjpeg|openjpeg|rle|nibabel|egal_shards)(\.|$)"

_lock = threading.Lock()
_blocks = 0  # how many threads are inside `library_warnings_hidden`
_filters: warnings.catch_warnings | None = None


@contextmanager
def library_warnings_hidden() -> Iterator[None]:
    """Hide Python warnings of the decoding libraries; the warnings of all other code stay visible.

    Filters belong to the process, not to a thread. The first thread that enters installs them and the last one that
    leaves restores the previous ones, so that threads that overlap cannot leave them installed.
    """
    global _blocks, _filters
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=_MODULES)
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0 and _filters:
                _filters.__exit__(None, None, None)
                _filters = None

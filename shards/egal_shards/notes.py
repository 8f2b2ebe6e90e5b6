"""Notes on how files were interpreted, for the person who packs them.

A reader that had to interpret a file, such as a mask that went through JPEG, calls `note` with one line that names the
kind of interpretation, not the file. Whoever reads many files counts the notes that `collected` returns and shows each
line once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collector: ContextVar[list[str] | None] = ContextVar("collector", default=None)


def note(line: str) -> None:
    """Add one line to the innermost `collected` of this thread; do nothing outside it."""
    lines = _collector.get()
    if lines is not None and line not in lines:
        lines.append(line)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that receives each distinct note that this thread makes inside the block."""
    lines: list[str] = []
    token = _collector.set(lines)
    try:
        yield lines
    finally:
        _collector.reset(token)

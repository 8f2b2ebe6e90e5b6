"""Output that cannot be written never ends or spoils work that is done: encodings, closed and full streams, pipes."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any, TextIO

from egal_bench.errors import BenchError

PLAIN = str.maketrans({
    "±": "+/-", "−": "-", "–": "-", "—": "-", "×": "x", "…": "...", "²": "2", "λ": "lambda", "Δ": "d", "·": "*",
    "≥": ">=", "≤": "<=", "→": "->", "’": "'", "─": "-", "━": "-", "│": "|", "╸": "-", "╺": "-", "≈": "~",
})  # fmt: skip


def make_streams_safe() -> None:
    """Replace sys.stdout and sys.stderr by streams that never raise and that fall back to plain characters."""
    codecs.register_error("egal_bench.plain", _plain)
    sys.stdout, sys.stderr = _safe(sys.stdout), _safe(sys.stderr)


def check_stdout() -> None:
    """Raise BenchError if output to stdout was lost, for commands that leave no other result.

    A reader that left early, such as `head`, has what it needs and is no error.
    """
    sys.stdout.flush()
    if isinstance(sys.stdout, SafeStream) and sys.stdout.lost:
        raise BenchError(f"stdout: cannot be written ({sys.stdout.lost}); free some space or choose another file")


class SafeStream:
    """A text stream that drops its output once the reader has left or the disk is full.

    Attributes:
        lost: why output was lost, unless its reader left; "" while all is written.
    """

    def __init__(self, stream: TextIO, lost: str = "") -> None:
        self._stream, self.lost = stream, lost

    def write(self, text: str) -> int:
        """Write `text`; return its length even where it was dropped."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless its output is dropped."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError | ValueError) -> None:
        """Send what is left in the buffers, and all further output, to the null device."""
        if not isinstance(error, BrokenPipeError):
            self.lost = getattr(error, "strerror", None) or str(error)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):  # the stream has no descriptor any more
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends


def _safe(stream: TextIO | None) -> TextIO:
    if stream is None:  # the descriptor was closed before the program started
        return SafeStream(open(os.devnull, "w", encoding="utf-8"), "it is closed")  # type: ignore[return-value]
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="egal_bench.plain")
    return SafeStream(stream)  # type: ignore[return-value]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return plain characters for those that the encoding of the stream lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return "".join(character if ord(character) < 128 else "?" for character in text), error.end

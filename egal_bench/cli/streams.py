"""Output that cannot be written never ends or spoils work that is done: encodings, closed and full streams, pipes."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any, TextIO

PLAIN = str.maketrans({
    "±": "+/-", "−": "-", "–": "-", "—": "-", "×": "x", "…": "...", "²": "2", "λ": "lambda", "Δ": "d", "·": "*",
    "≥": ">=", "≤": "<=", "→": "->", "’": "'", "─": "-", "━": "-", "│": "|", "╸": "-", "╺": "-", "≈": "~",
})  # fmt: skip


def make_streams_safe() -> None:
    """Replace sys.stdout and sys.stderr by streams that never raise and that fall back to plain characters."""
    codecs.register_error("egal_bench.plain", _plain)
    sys.stdout, sys.stderr = _safe(sys.stdout), _safe(sys.stderr)


class SafeStream:
    """A text stream that drops its output once the reader has left or the disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`; return its length even where it was dropped."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless its output is dropped."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """Send what is left in the buffers, and all further output, to the null device."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):  # the stream has no descriptor any more
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends


def _safe(stream: TextIO | None) -> TextIO:
    if stream is None:  # the descriptor was closed before the program started
        return open(os.devnull, "w", encoding="utf-8")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="egal_bench.plain")
    return SafeStream(stream)  # type: ignore[return-value]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return plain characters for those that the encoding of the stream lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return "".join(character if ord(character) < 128 else "?" for character in text), error.end

"""The errors that state a user's mistake, and the words that their messages share."""

import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

# where code lies that is not the user's: the standard library, installed packages and this package
_LIBRARIES = tuple(
    f"{path}{os.sep}"
    for path in (*(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")), Path(__file__).parent)
)


class BenchError(ValueError):
    """A mistake that the user can fix: the message says, on one line, what is wrong, where, and how to fix it."""


class Interrupted(BenchError):
    """Ctrl-C: the message says what is finished and how to resume."""


class UserCodeError(BenchError):
    """An exception raised inside a user's own strategy or network: the message names it, its file and line."""

    @classmethod
    def of(cls, what: str, error: BaseException, source: str = "") -> "UserCodeError":
        """Return the error for `what`, with the place where it was raised.

        Args:
            what: such as "strategy 'mine:Mine'".
            error: the exception; a SyntaxError names its place itself.
            source: the user's file, whose innermost line is the place; without one, or where it has no line, the place
                is the innermost line outside libraries: an exception inside PyTorch is located at the call of PyTorch.
        """
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "<frozen" not in frame.filename]
        own = [frame for frame in frames if frame.filename == source]
        frames = own or [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)] or frames
        located = bool(frames) and not isinstance(error, SyntaxError)
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if located else ""
        return cls(f"{what} raised {type(error).__name__}: {brief(error)}{place}; --debug shows the traceback")


class Defect(RuntimeError):
    """An exception of another process that states no user's mistake; its cause is the traceback there."""


class RemoteTraceback(Exception):
    """The text of a traceback in another process."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> BenchError:
    """Return the BenchError for a `name` that is none of `choices`, with the nearest of them as a hint."""
    from egal_shards.errors import did_you_mean

    names = list(choices)
    listed = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    return BenchError(f"unknown {kind} {name!r}: {did_you_mean(name, names)}Known: {listed}")


def brief(error: BaseException) -> str:
    """Return the first line of the message of `error`, or the name of its type where it has no message."""
    try:
        lines = str(error).splitlines()
    except Exception:  # a user's exception may have any __str__
        lines = []
    return next(iter(lines), "") or type(error).__name__

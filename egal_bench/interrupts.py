"""Signals that end this process by an exception, which neither a destructor nor an import swallows."""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from types import FrameType

_AGAIN_S = 0.02
_PATIENCE = 100  # times that a signal waits for this time, until destructors and imports have ended


def raise_on(number: int, exception: type[BaseException]) -> None:
    """Let a signal raise `exception` once no destructor and no import runs; a signal that is ignored stays so.

    Python prints and drops what a handler raises during a destructor or a callback of a weak reference, and a
    destructor that is cut short may leave a lock broken. Libraries take any exception of an import for a package that
    is not installed, and continue without it. So the signal is sent again a little later in these cases, and wherever
    Python has dropped the exception.

    Args:
        number: the signal.
        exception: what it raises in the main thread.
    """
    if signal.getsignal(number) is signal.SIG_IGN:
        return
    can_repeat, delays, report = hasattr(signal, "setitimer"), count(), sys.unraisablehook  # Windows cannot

    def handle(_: int, frame: FrameType | None) -> None:
        if can_repeat and _must_end(frame) and next(delays) < _PATIENCE:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            raise exception

    def repeat_or_report(unraisable: sys.UnraisableHookArgs) -> None:
        if can_repeat and _stems_from(unraisable.exc_value, exception):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            report(unraisable)

    signal.signal(number, handle)
    if can_repeat:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
    sys.unraisablehook = repeat_or_report


def _must_end(frame: FrameType | None) -> bool:
    """Return whether `frame` belongs to a destructor, to a callback of a weak reference or to an import."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "__del__" or module in ("weakref", "importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False


def _stems_from(error: BaseException | None, exception: type[BaseException]) -> bool:
    """Return whether `error` is an `exception`, or was raised while one was on its way."""
    while error is not None:
        if isinstance(error, exception):
            return True
        error = error.__context__
    return False

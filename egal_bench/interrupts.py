"""Interrupts that are not lost: signals whose exception Python swallows are sent again."""

from __future__ import annotations

import os
import signal
import sys

_AGAIN_S = 0.02  # long enough that the code which swallowed the exception has usually ended


def repeat_swallowed(number: int, exception: type[BaseException]) -> None:
    """Send a signal to this process again, without a message, whenever Python swallows what its handler has raised.

    Python prints and drops an exception that a handler raises during a destructor, a callback of a weak reference or
    garbage collection. The interrupt would be lost.

    Args:
        number: the signal.
        exception: what the signal's handler raises.
    """
    if not hasattr(signal, "setitimer"):  # Windows
        return
    report = sys.unraisablehook

    def repeat_or_report(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, exception):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            report(unraisable)

    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
    sys.unraisablehook = repeat_or_report

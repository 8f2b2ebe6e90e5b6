"""Signals that end the work of a process by an exception, at a moment at which the exception is not lost."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from types import FrameType

_AGAIN_S = 0.02  # until a signal is tried again
_PATIENCE_S = {"destructor": 2.0, "import": 10.0}  # for which a signal waits for the end of what runs


@contextmanager
def raised_by(number: int, exception: type[BaseException]) -> Iterator[None]:
    """Let a signal raise `exception` in the block, but not during a destructor or an import, which would lose it.

    Python prints and drops what a handler raises during a destructor or a callback of a weak reference, and a
    destructor that is cut short may leave a lock broken. Libraries take any exception of an import for a package that
    is not installed, and continue without it. In these cases the signal waits a while. If Python has dropped the
    exception nevertheless, the signal comes again. A signal that is ignored stays so, and outside the main thread and
    on Windows the block changes nothing.

    Args:
        number: the signal.
        exception: what it raises.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before, report = signal.getsignal(number), sys.unraisablehook
    if before is signal.SIG_IGN or not in_main_thread or not hasattr(signal, "pthread_kill"):
        yield
        return
    main_thread, waiting_since, ended = threading.main_thread().ident or 0, None, False

    def handle(_: int, frame: FrameType | None) -> None:
        nonlocal waiting_since
        waiting_since = waiting_since or monotonic()
        if monotonic() - waiting_since < _PATIENCE_S.get(_running(frame), 0):
            _thread.start_new_thread(send_again, ())  # threading would need locks that this thread may hold
        else:
            waiting_since = None
            raise exception

    def send_again() -> None:
        sleep(_AGAIN_S)
        if not ended:
            signal.pthread_kill(main_thread, number)

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, exception):
            _thread.start_new_thread(send_again, ())
        else:
            report(unraisable)

    signal.signal(number, handle)
    sys.unraisablehook = report_others
    try:
        yield
    finally:
        ended = True
        sys.unraisablehook = report
        if signal.getsignal(number) is handle:
            signal.signal(number, before)


def _running(frame: FrameType | None) -> str:
    """Return "destructor" or "import" if `frame` belongs to one (callbacks of weak references count), else ""."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "__del__" or module == "weakref":
            return "destructor"
        if module == "importlib._bootstrap":
            return "import"
        frame = frame.f_back
    return ""

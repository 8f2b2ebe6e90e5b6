"""The steps of a visit to a GPU: each is skipped with its reason or run, and all end in one table and one JSON file."""

from __future__ import annotations

import importlib.util
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        step: name of the step.
        case: what was checked or measured.
        result: the value, or "equal", "skipped" or "failed".
        unit: unit of the value; "": none.
        note: share of a roof, or the reason of a skip or failure.
    """

    step: str
    case: str
    result: float | str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Step:
    """A part of the visit.

    Attributes:
        name: what it does.
        run: takes the seconds that are left and yields its rows. Those that it has yielded stay if it fails later.
        seconds: how long it takes at most; it is skipped if less time is left.
        needs: packages that it imports.
    """

    name: str
    run: Callable[[float], Iterable[Row]]
    seconds: float
    needs: tuple[str, ...] = ()


def visit(steps: Sequence[Step], limit: float, say: Callable[[str], None] = print) -> list[Row]:
    """Run the steps in their order and return their rows; a step that cannot run or fails has one row with the reason.

    A step that would exceed the limit is stopped, and counts as failed.

    Args:
        steps: the steps.
        limit: seconds for all of them.
        say: called with a line before and after each step.
    """
    start, rows = perf_counter(), []
    for step in steps:
        left = limit - (perf_counter() - start)
        missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
        if missing:
            rows.append(Row(step.name, "", "skipped", note=f"not installed: {', '.join(missing)}"))
        elif left < step.seconds:
            rows.append(Row(step.name, "", "skipped", note=f"needs {step.seconds:.0f} s, {left:.0f} s are left"))
        else:
            say(f"{step.name} …")
            began = perf_counter()
            try:
                with stopped_after(left):
                    for row in step.run(left):
                        rows.append(row)  # one by one, so that a failure leaves those before it
            except Exception as error:  # whatever a step meets, the others still run
                lines = str(error).strip().splitlines() or [""]
                rows.append(Row(step.name, "", "failed", note=f"{type(error).__name__}: {lines[0]}"))
            say(f"{step.name}: {perf_counter() - began:.0f} s")
    return rows


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once so many seconds have passed; for the main thread of a process on Unix."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("no time is left")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| step | case | result | note |", "|---|---|---|---|"]
    for row in rows:
        value = f"{row.result:.4g}" if isinstance(row.result, float) else row.result
        lines.append(f"| {row.step} | {row.case} | {f'{value} {row.unit}'.strip()} | {row.note} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], machine: dict[str, str], path: Path) -> None:
    """Write the machine and the rows to `path`, as JSON."""
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")

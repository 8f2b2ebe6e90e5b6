"""Messages and progress bars on stderr: bars on a terminal, nothing or single lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """Print one line on stderr, without markup and without line breaks of its own."""
    console.print(line, markup=False, soft_wrap=True)


@contextmanager
def counted(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of `total` steps; yield the function that advances the bar by n steps."""
    with progress_bars() as bars:
        bar = bars.add_task(description, total=total, note="")
        yield lambda n: bars.advance(bar, n)


def progress_bars() -> Progress:
    """Return a rich Progress whose tasks have a `note` field; it is silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal,
    )  # fmt: skip

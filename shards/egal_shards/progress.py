"""A progress bar on stderr for work that takes long, where stderr is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` items while the context is open, and yield the function that advances it.

    There is no bar where stderr is not a terminal, such as in a log file.

    Args:
        title: Text before the bar.
        total: Number of items in all.
        shown: Whether there is a bar at all.
    """
    if not shown:
        yield lambda items: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda items: bar.advance(task, items)

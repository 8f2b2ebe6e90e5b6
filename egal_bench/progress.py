"""What a person sees while it works, on stderr: bars on a terminal, a line a finished run elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from egal_bench.run import Task

console = Console(stderr=True, highlight=False)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of `total` samples; the function given advances it by n."""
    with _bars() as bars:
        bar = bars.add_task(what, total=total, note="")
        yield lambda n: bars.advance(bar, n)


@contextmanager
def rounds_of(tasks: Sequence[Task], rounds: int) -> Iterator[Callable[[Task, int, int, float], None]]:
    """A bar for each strategy and one for all; the function given takes (task, round, labels, accuracy)."""
    runs = Counter((task.dataset, task.strategy) for task in tasks)
    finished = 0
    with _bars() as bars:
        rows = {run: bars.add_task(" ".join(run), total=n * (rounds + 1), note="") for run, n in runs.items()}
        whole = bars.add_task("all runs", total=len(tasks) * (rounds + 1), note=f"0/{len(tasks)} runs")

        def report(task: Task, round_: int, labels: int, accuracy: float) -> None:
            nonlocal finished
            note = f"seed {task.seed} round {round_}/{rounds}: accuracy {accuracy:.3f} at {labels} labels"
            bars.update(rows[task.dataset, task.strategy], advance=1, note=note)
            finished += round_ == rounds
            bars.update(whole, advance=1, note=f"{finished}/{len(tasks)} runs")
            if round_ == rounds and not console.is_terminal:
                console.print(f"run {finished}/{len(tasks)}: {task.dataset} {task.strategy} {note}", soft_wrap=True)

        yield report


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal,
    )  # fmt: skip

"""The progress of a comparison: bars on a terminal, one line per finished run elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import Progress

from egal_bench.console import console, progress_bars
from egal_bench.runs.task import Task


@contextmanager
def progress_of(tasks: Sequence[Task]) -> Iterator[GridProgress]:
    """Show one bar per strategy and one for all runs; yield the object that advances them."""
    with progress_bars() as bars:
        yield GridProgress(bars, tasks)


class GridProgress:
    """The bars of the runs in `tasks`."""

    def __init__(self, bars: Progress, tasks: Sequence[Task]) -> None:
        self._bars, self._runs, self._finished = bars, len(tasks), 0
        self._notes: dict[Task, str] = {}
        steps = Counter[tuple[str, str]]()
        for task in tasks:
            steps[task.dataset, task.strategy] += task.config.rounds + 1
        self._rows = {name: bars.add_task(" ".join(name), total=total, note="") for name, total in steps.items()}
        self._all = bars.add_task("all runs", total=sum(steps.values()), note=f"0/{self._runs} runs")

    def round_done(self, task: Task, round_: int, labels: int, accuracy: float) -> None:
        """Advance the bars by one round of `task`."""
        note = f"seed {task.seed} round {round_}/{task.config.rounds}: accuracy {accuracy:.3f} at {labels} labels"
        self._notes[task] = note
        self._bars.update(self._rows[task.dataset, task.strategy], advance=1, note=note)
        self._bars.update(self._all, advance=1)

    def run_done(self, task: Task) -> None:
        """Count `task` as finished, its tables being written."""
        self._finished += 1
        self._bars.update(self._all, note=f"{self._finished}/{self._runs} runs")
        if not console.is_terminal:
            note = self._notes.pop(task, f"seed {task.seed}")
            console.print(f"run {self._finished}/{self._runs}: {task.dataset} {task.strategy} {note}", soft_wrap=True)

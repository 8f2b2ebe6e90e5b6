"""The progress of a comparison: bars on a terminal, one line per finished run elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.progress import Progress

from egal_bench.console import console, progress_bars, say
from egal_bench.runs.task import History, Task


@contextmanager
def progress_of(tasks: Sequence[Task]) -> Iterator[GridProgress]:
    """Show one bar per strategy and one for all runs; yield the object that advances them."""
    with progress_bars() as bars:
        yield GridProgress(bars, tasks)


class GridProgress:
    """The bars of the runs in `tasks`."""

    def __init__(self, bars: Progress, tasks: Sequence[Task]) -> None:
        self._bars, self._runs, self._finished, self._start = bars, len(tasks), 0, monotonic()
        self._rounds_done = 0  # rounds that this process has finished
        self._notes: dict[str, str] = {}
        self._rounds_left = {str(task.run): task.config.rounds + 1 for task in tasks}
        steps = Counter[tuple[str, str]]()
        for task in tasks:
            steps[task.run.dataset, task.run.strategy] += task.config.rounds + 1
        self._rows = {name: bars.add_task(" ".join(name), total=total, note="") for name, total in steps.items()}
        self._all = bars.add_task("all runs", total=sum(steps.values()), note=f"0/{self._runs} runs")

    def resumed(self, task: Task, history: History | None) -> None:
        """Count the rounds of `history` as done."""
        self._advance(task, history.last_round + 1 if history else 0)

    def round_done(self, task: Task, row: Mapping[str, Any]) -> None:
        """Advance the bars by one round of `task`, whose row of `rounds` is given."""
        run, last = task.run, task.config.rounds
        note = f"seed {run.seed} round {row['round']}/{last}: accuracy {row['accuracy']:.3f} at {row['labels']} labels"
        self._notes[str(run)] = note
        self._bars.update(self._rows[run.dataset, run.strategy], note=note)
        self._rounds_done += 1
        self._advance(task, 1)

    def run_done(self, task: Task) -> None:
        """Count `task` as finished: its tables are written, by this process or by another one."""
        self._advance(task, self._rounds_left[str(task.run)])
        self._finished += 1
        self._bars.update(self._all, note=f"{self._finished}/{self._runs} runs")
        if not console.is_terminal:
            note = self._notes.pop(str(task.run), f"seed {task.run.seed}: finished by another process")
            text = (
                f"run {self._finished}/{self._runs}: {task.run.dataset} {task.run.strategy} {note}{self._time_left()}"
            )
            say(text)

    def _advance(self, task: Task, rounds: int) -> None:
        self._rounds_left[str(task.run)] -= rounds
        self._bars.update(self._rows[task.run.dataset, task.run.strategy], advance=rounds)
        self._bars.update(self._all, advance=rounds)

    def _time_left(self) -> str:
        """Return the estimated time until all runs are finished, from the mean time per finished round."""
        rounds_left = sum(self._rounds_left.values())
        left = (monotonic() - self._start) / max(self._rounds_done, 1) * rounds_left
        if self._finished == self._runs:
            return ""
        minutes, seconds = divmod(round(left), 60)
        return f", about {minutes} min {seconds:02} s left" if minutes else f", about {seconds} s left"

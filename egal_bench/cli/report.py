"""`egal-bench report`: from results folders to a report that a reviewer can read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option as Flag

from egal_bench.cli.output import Json, print_json


def report(
    runs: Annotated[list[Path], typer.Argument(help="results folders that `compare` wrote, such as runs/NAME")],
    baseline: Annotated[str, Flag(help="strategy with which the others are compared")] = "random",
    metric: Annotated[
        str, Flag(help="metric of the verdict: accuracy | balanced_accuracy | macro_auc | macro_f1 | nll | ece")
    ] = "accuracy",
    margin: Annotated[
        float, Flag(help="differences below it do not matter, in points (0.01 of the metric; nll: 0.01 nats)")
    ] = 1.0,
    test: Annotated[str, Flag(help="paired test over seeds: sign-flip (exact) | wilcoxon | t")] = "sign-flip",
    out: Annotated[
        Path | None, Flag(help="folder of the report  [default: RUNS/report, for several folders report]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what the results allow to conclude: report.html, tables, figures and verdict.json."""
    from egal_bench.reports.question import Question
    from egal_bench.reports.report import write_report

    question = Question(baseline, metric, margin, test)
    folder = out or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    verdict = write_report(runs, folder, question)
    for dataset in verdict["datasets"].values():
        for sentence in filter(None, [dataset["sentence"], dataset["next_step"], dataset["caution"]]):
            print(sentence)
    failed = [check["check"] for check in verdict["audit"] if check["status"] == "fail"]
    if failed:
        print(f"The audit fails for: {', '.join(failed)}")
    print(f"Report: {folder / 'report.html'}")
    if as_json:
        print_json(verdict)

"""One run: one strategy with one seed on one data set, from the initial set to the last round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from egal_bench.models.process import reproducible
from egal_bench.runs.purchase import Buyer
from egal_bench.runs.record import Record
from egal_bench.runs.task import RunTables, Task
from egal_bench.runs.workspace import Workspace
from egal_bench.strategies import find

Report = Callable[[Task, int, int, float], None]  # task, round, labels, accuracy


def run(task: Task, workspace: Workspace, report: Report) -> RunTables:
    """Execute `task` and return the rows of its tables; `report` is called after each round."""
    with reproducible(task.config.threads):
        dataset, strategy = workspace.dataset(task.shards), find(task.strategy, task.config)
        learner = workspace.learner(task)
        buyer = Buyer(dataset, strategy, learner, task.config, task.streams())
        record = Record(dataset, task.config_hash)

        labelled = buyer.initial_set()
        record.initial_set(labelled)
        for round_ in range(task.config.rounds + 1):
            record.begin_round(round_, labelled)
            record.trained(learner.fit(labelled, round_))
            record.evaluated(learner.score(dataset.test, {"roi"}))
            if round_ < task.config.rounds:
                purchase = buyer.buy(labelled, round_ + 1)
                record.bought(purchase)
                labelled = np.concatenate([labelled, purchase.positions])
            row = record.rounds[-1]
            report(task, round_, row["labels"], row["accuracy"])
        return record.tables()

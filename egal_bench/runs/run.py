"""One run: one strategy with one seed on one data set, from the initial set to the last round."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np

from egal_bench.models.process import reproducible
from egal_bench.runs.events import Event, RoundDone, RunDone
from egal_bench.runs.purchase import Buyer
from egal_bench.runs.record import Record
from egal_bench.runs.task import Task
from egal_bench.runs.workspace import Workspace
from egal_bench.strategies import BoundStrategy, find
from egal_bench.tables.environment import hardware


def run(task: Task, workspace: Workspace) -> Iterator[Event]:
    """Execute `task`; yield each round that finishes, then the end of the run.

    The rounds of `task.history` are not repeated. Only where its last round has no query yet, since the run ended
    there, its model is trained once more to make that query.
    """
    config = task.config
    with reproducible(config.threads, tf32=config.precision == "tf32"):
        dataset, strategy = workspace.dataset(task.shards), find_for(task)
        learner = workspace.learner(task)
        buyer = Buyer(dataset, strategy, learner, config, task.streams())
        record = Record(dataset, task, strategy.needs)

        def buy(labelled: np.ndarray, round_: int) -> np.ndarray:
            purchase = buyer.buy(labelled, round_)
            record.bought(purchase, round_)
            record.pool(purchase, round_, learner, buyer.tie_order)
            return np.concatenate([labelled, purchase.positions])

        if task.history is None:
            labelled, first_round = buyer.initial_set(), 0
            record.initial_set(labelled)
        else:
            labelled, first_round = record.resume(task.history), task.history.last_round + 1
            learner.restore(task.history.files)
            if first_round > config.rounds:  # the run ended after its last round, before its network was written
                if config.save_network and not config.warm_start:
                    learner.fit(labelled, config.rounds)
            elif len(labelled) < config.init + first_round * config.budget:
                learner.fit(labelled, first_round - 1)
                labelled = buy(labelled, first_round)
                record.explained(learner, first_round - 1, test=False)

        for round_ in range(first_round, config.rounds + 1):
            record.begin_round(round_, labelled)
            record.trained(learner.fit(labelled, round_))
            record.evaluated(learner.score(dataset.test, {"roi"}))
            if round_ < config.rounds:
                labelled = buy(labelled, round_ + 1)
            record.explained(learner, round_)
            yield RoundDone(task, record.take_rows(), learner.state())
        yield RunDone(task, learner.network_file() if config.save_network else {}, hardware(config.device))


def find_for(task: Task) -> BoundStrategy:
    """Return the strategy of `task`, in a worker process too.

    The name of the run holds every parameter that differs from the declared defaults, so no flag has a say here.
    """
    for module in task.modules:
        importlib.import_module(module)
    return find(task.run.strategy)

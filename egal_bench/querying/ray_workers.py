"""Shards handed out to actors of a Ray cluster, each of which keeps the network in its memory.

Each actor writes the scores of its shards itself, so every node must see the folder of the results. A shard may be
scored twice when an actor is lost: its file is written whole, and the second attempt finds it or makes it again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from egal_bench.console import say
from egal_bench.errors import BenchError, Defect, brief
from egal_bench.models.process import prepare_process
from egal_bench.querying.shard_task import ShardTask
from egal_bench.querying.workers import Outcome, Work, answer_of, read_answer
from egal_bench.runs.ray_engine import LOSSES, POLL, RayEngine
from egal_bench.runs.ray_worker import Driver
from egal_shards.urls import is_url


class Scorer:
    """Scores shards in a process of its own on some node."""

    def __init__(self, driver: Driver) -> None:
        driver.enter()
        prepare_process()

    def score(self, task: ShardTask, rows: Any) -> Any:
        """Score a shard; see `answer_of`."""
        if not task.out.is_dir():
            return True, f"{task.out}: a node of the cluster does not see this folder; give an --out that all see", ""
        return answer_of(task, rows)


def outcomes_on_ray(work: Iterable[Work], engine: RayEngine) -> Iterator[tuple[ShardTask, Outcome, str]]:
    """Yield each task with its outcome, as `workers.outcomes` does; shards go to actors as these become free.

    Raises:
        BenchError: an error that does not lie in one shard; or actors were lost again and again with one shard.
    """
    waiting = iter(work)
    repeated: list[Work] = []  # whose actor was lost
    losses: Counter[str] = Counter()
    actors: list[Any] = []
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, Work]] = {}  # by the answer that is awaited
    try:
        while True:
            while len(busy) < engine.places() and (shard := repeated.pop() if repeated else next(waiting, None)):
                if not idle:
                    actors.append(engine.actor(Scorer))
                    idle.append(actors[-1])
                actor = idle.pop()
                task, rows = shard
                busy[actor.score.remote(_portable(task), rows)] = actor, shard
            if not busy:
                return
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=POLL)
            if not ready:
                engine.require_capacity()
                continue
            actor, (task, rows) = busy.pop(ready[0])
            try:
                answer = ray.get(ready[0])
            except RayTaskError as error:
                raise Defect(f"{task.name}: {brief(error)}") from error
            except RayError as error:
                losses[task.name] += 1
                if losses[task.name] >= LOSSES:
                    raise BenchError(
                        f"{task.name}: {LOSSES} workers were lost while they scored it (out of memory?); finished "
                        "shards are kept: run again with fewer workers per node by --threads or --memory-per-run"
                    ) from error
                say(f"{task.name}: its worker was lost ({type(error).__name__}); another one scores it")
                repeated.append((task, rows))
                continue
            idle.append(actor)
            yield task, *read_answer(answer)
    finally:
        for actor in actors:
            with suppress(RayError):
                ray.kill(actor)


def _portable(task: ShardTask) -> ShardTask:
    """Return `task` with absolute paths."""
    shards = task.shards if is_url(task.shards) else os.path.abspath(task.shards)
    return replace(task, out=task.out.resolve(), network=task.network.resolve(), shards=shards)

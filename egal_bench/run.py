"""One run: one strategy with one seed on one dataset, from the initial set to the last round."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from egal_bench import results
from egal_bench.config import Config
from egal_bench.dataset import Dataset, open_dataset
from egal_bench.errors import BenchError
from egal_bench.metrics import evaluate
from egal_bench.scores import Scores
from egal_bench.strategies import Pool, Strategy, find

STREAMS = ("pool", "model", "query", "loader")  # one independent stream each, the same for every strategy


@dataclass(frozen=True)
class Task:
    """What a run needs, small enough to send to a process. `features`: folder of the frozen regime's features."""

    shards: str
    dataset: str
    strategy: str
    seed: int
    config: Config
    config_hash: str
    out: Path
    device: str
    features: Path | None

    def part(self, table: str) -> Path:
        """Path of this run's file of `table`."""
        return results.part(self.out, table, self.dataset, self.strategy, self.seed)

    @property
    def unfinished(self) -> Path:
        """Folder of the scores computed so far, which a run that begins again need not compute again."""
        return results.part(self.out / "unfinished", self.config_hash, self.dataset, self.strategy, self.seed).parent

    def finished(self) -> bool:
        """Whether its tables are there, written under the same configuration."""
        return self.part("selections").is_file() and results.config_hash(self.part("rounds")) == self.config_hash


class Learner(Protocol):
    """A regime: what fits a model to the labelled samples and scores others. Positions: int64, in the shard set.

    `fit` takes positions in the order of labelling and returns those whose ROI it looked at.
    """

    def fit(self, labelled: np.ndarray, round_: int) -> np.ndarray: ...
    def score(self, positions: np.ndarray, *, overlap: bool, features: bool = False) -> Scores: ...


def run(task: Task, report: Callable[[int, int, float], None]) -> None:
    """Carry out `task` and write its tables; `report(round, labels, accuracy)` after each round."""
    with threadpool_limits(task.config.threads):  # BLAS would take every core in every worker
        rounds, selections = _rounds(task, report)
    results.write(task.part("selections"), "selections", selections)
    results.write(task.part("rounds"), "rounds", rounds)  # last: it marks the run as finished
    shutil.rmtree(task.unfinished, ignore_errors=True)
    report(rounds[-1]["round"], rounds[-1]["labels"], rounds[-1]["accuracy"])


def _rounds(task: Task, report: Callable[[int, int, float], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `rounds` and of `selections`."""
    dataset, strategy = open_dataset(task.shards), find(task.strategy)
    streams = dict(zip(STREAMS, np.random.SeedSequence(task.seed).spawn(len(STREAMS)), strict=True))
    learner = _learner(task, dataset, streams)
    config = task.config
    query_rng = np.random.default_rng(streams["query"])
    labelled = np.random.default_rng(streams["pool"]).permutation(dataset.pool)[: config.init]
    selections = [_row(0, rank, position, dataset) for rank, position in enumerate(labelled)]
    seen = np.zeros(len(dataset.keys), dtype=bool)  # ROIs that were looked at, to query or to train
    rounds = []
    for round_ in range(config.rounds + 1):
        row, score_s = _evaluated(learner, dataset, labelled, round_, seen), 0.0
        masks = int((seen & dataset.has_roi).sum())
        if round_ < config.rounds:
            start = perf_counter()
            pool = np.setdiff1d(dataset.pool, labelled)
            pool = pool[np.argsort(dataset.keys[pool], kind="stable")]
            chosen, rows = _query(learner, strategy, dataset, pool, labelled, query_rng, config, round_ + 1)
            score_s = perf_counter() - start
            seen[pool] |= strategy.needs_roi
            selections += rows
            labelled = np.concatenate([labelled, chosen])
        rounds.append(row | {"masks": masks, "score_s": score_s, "config_hash": task.config_hash})
        if round_ < config.rounds:  # the last is reported once the tables are written
            report(round_, row["labels"], row["accuracy"])
    return rounds, selections


def _learner(task: Task, dataset: Dataset, streams: dict[str, np.random.SeedSequence]) -> Learner:
    """The regime's learner, torch set up so that one seed gives one result."""
    import torch

    torch.set_num_threads(task.config.threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would load the compiler: seconds
    if task.features is not None:
        return _frozen_learner(task.shards, task.features, task.config)
    from egal_bench import finetune, model, weights

    state, _ = weights.load(task.config.weights, task.config.backbone)
    network = model.of_config(task.config, dataset, int(streams["model"].generate_state(1)[0]), state)
    return finetune.FinetuneLearner(dataset, network, task.config, streams["loader"], task.device, task.unfinished)


@lru_cache(maxsize=1)  # one for all runs of a process, since each fit begins from zero; `features` are of one content
def _frozen_learner(shards: str, features: Path, config: Config) -> Learner:
    from egal_bench.features import open_features
    from egal_bench.frozen import FrozenLearner

    return FrozenLearner(open_dataset(shards), open_features(features), config)


def _evaluated(
    learner: Learner, dataset: Dataset, labelled: np.ndarray, round_: int, seen: np.ndarray
) -> dict[str, Any]:
    """Fit on `labelled`, mark in `seen` the ROIs that takes, and measure on the test set: most of a row of `rounds`."""
    start = perf_counter()
    seen[learner.fit(labelled, round_)] = True
    fitted = perf_counter()
    scores = learner.score(dataset.test, overlap=True)
    assert scores.overlap is not None
    with_roi = scores.overlap.dice[dataset.has_roi[dataset.test]]
    return {
        "round": round_,
        "labels": len(labelled),
        **evaluate(scores.logits, dataset.labels[dataset.test]),
        "test_dice": float(with_roi.mean()) if len(with_roi) else float("nan"),
        "test_size": len(dataset.test),
        "pool_size": len(dataset.pool) - len(labelled),
        "train_s": fitted - start,
        "eval_s": perf_counter() - fitted,
    }


def _query(
    learner: Learner, strategy: Strategy, dataset: Dataset, pool: np.ndarray, labelled: np.ndarray,
    rng: np.random.Generator, config: Config, round_: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:  # fmt: skip
    """Positions of the samples the strategy buys from `pool`, best first, and their rows of `selections`."""
    wanted = strategy.needs_features
    scores = learner.score(pool, overlap=strategy.needs_roi, features=wanted)
    view = Pool(
        strategy,
        keys=dataset.keys[pool],
        logits=scores.logits,
        entropy=scores.entropy,
        labels_revealed=dataset.labels[labelled],
        budget=config.budget,
        rng=rng,
        config=config,
        overlap=scores.overlap,
        features=scores.features,
        labelled_features=learner.score(labelled, overlap=False, features=True).features if wanted else None,
    )
    first = _checked(strategy(view), view)[: config.budget]
    # the overlap of what was bought, for the record: by now its ROI has been paid for or is only reported
    overlap = scores.overlap or learner.score(pool[first], overlap=True).overlap
    assert overlap is not None
    rows = []
    for rank, i in enumerate(first):
        j = i if scores.overlap else rank
        row = _row(round_, rank, pool[i], dataset) | {"score": view.scores[i], "entropy": scores.entropy[i]}
        row |= {name: int(getattr(overlap, name)[j]) for name in ("intersection", "cam_area", "roi_area")}
        rows.append(row | {"misalignment": 1.0 - float(overlap.dice[j])})
    return pool[first], rows


def _checked(ranked: Any, view: Pool) -> np.ndarray:
    """The strategy's answer, if it is one: distinct indices of the pool, at least a budget of them."""
    ranked = np.asarray(ranked)
    if ranked.ndim != 1 or ranked.dtype.kind not in "iu" or len(ranked) < view.budget:
        raise BenchError(
            f"a strategy returned {ranked.dtype} {list(ranked.shape)}: "
            f"it must return at least {view.budget} ranked indices"
        )
    if len(np.unique(ranked)) < len(ranked) or ranked.min() < 0 or ranked.max() >= len(view):
        raise BenchError(f"a strategy returned repeated indices or some outside 0..{len(view) - 1}")
    return ranked


def _row(round_: int, rank: int, position: int, dataset: Dataset) -> dict[str, Any]:
    """A row of `selections` before any score is known."""
    nan = float("nan")
    return {
        "round": round_, "rank": rank, "key": str(dataset.keys[position]), "label": int(dataset.labels[position]),
        "score": nan, "entropy": nan, "misalignment": nan, "intersection": -1, "cam_area": -1, "roi_area": -1,
    }  # fmt: skip

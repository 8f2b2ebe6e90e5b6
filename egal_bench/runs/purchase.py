"""Buying labels: the initial set, and in each round the samples that the strategy chooses from the pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.learners.learner import Learner
from egal_bench.scoring.scores import Scores
from egal_bench.strategies import BoundStrategy, Overlap, Pool


@dataclass(frozen=True, eq=False)
class Purchase:
    """The B samples that one query buys, best first.

    Attributes:
        positions: int64 [B], positions in the shard set.
        scores: float64 [B], the score with which each was chosen.
        entropy: float [B], nats.
        overlap: of Grad-CAM and ROI of the bought samples; their ROIs are bought with the labels.
        rois: int64, positions whose ROIs the strategy looked at to choose.
    """

    positions: np.ndarray
    scores: np.ndarray
    entropy: np.ndarray
    overlap: Overlap
    rois: np.ndarray


class Buyer:
    """Buys labels for one run: `strategy` chooses, by the scores of `learner`.

    Args:
        streams: the random streams of the run.
    """

    def __init__(
        self, dataset: Dataset, strategy: BoundStrategy, learner: Learner, config: Config,
        streams: dict[str, np.random.SeedSequence],
    ) -> None:  # fmt: skip
        self.dataset, self.strategy, self.learner, self.config = dataset, strategy, learner, config
        self._pool_stream, self._rng = streams["pool"], np.random.default_rng(streams["query"])

    def initial_set(self) -> np.ndarray:
        """Return the positions of the initial set, drawn at random from the pool, int64 [init]."""
        return np.random.default_rng(self._pool_stream).permutation(self.dataset.pool)[: self.config.init]

    def buy(self, labelled: np.ndarray, round_: int) -> Purchase:
        """Return the purchase for round `round_`, given the samples at `labelled` in the order of labelling."""
        needs = self.strategy.needs
        unlabelled = self.dataset.pool[~np.isin(self.dataset.pool, labelled)]
        scores = self.learner.score(unlabelled, needs)
        query = self.strategy(self._view(unlabelled, labelled, scores, round_))
        positions = unlabelled[query.indices]
        overlap = scores.overlap[query.indices] if scores.overlap else self._overlap_of_bought(positions)
        rois = unlabelled if "roi" in needs else unlabelled[:0]
        return Purchase(positions, query.scores, scores.entropy[query.indices], overlap, rois)

    def _overlap_of_bought(self, positions: np.ndarray) -> Overlap:
        """Return the overlap of samples whose ROIs are bought with their labels, for the record."""
        overlap = self.learner.score(positions, {"roi"}).overlap
        assert overlap is not None
        return overlap

    def _view(self, unlabelled: np.ndarray, labelled: np.ndarray, scores: Scores, round_: int) -> Pool:
        """Return the pool of the samples at `unlabelled` as the strategy may see it."""
        dataset, needs = self.dataset, self.strategy.needs
        private = {
            "overlap": scores.overlap,
            "features": scores.features,
            "labelled_features": self.learner.score(labelled, {"features"}).features if "features" in needs else None,
            "labels": dataset.labels[unlabelled],
        }
        return Pool(
            keys=dataset.keys[unlabelled], logits=scores.logits, entropy=scores.entropy,
            labelled_keys=dataset.keys[labelled], labelled_labels=dataset.labels[labelled],
            groups=dataset.groups[unlabelled], classes=tuple(dataset.shards.classes), round=round_,
            budget=self.config.budget, rng=self._rng, tie_order=np.arange(len(unlabelled)), config=self.config,
            needs=needs, name=self.strategy.name, private=private,
        )  # fmt: skip

"""Buying labels: the initial set, and in each round the samples that the strategy chooses from the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.learners.learner import Learner
from egal_bench.runs.task import round_generator
from egal_bench.scoring.scores import Scores
from egal_bench.strategies import BoundStrategy, Overlap, Pool
from egal_bench.strategies.pool import MapStream


@dataclass(frozen=True, eq=False)
class Purchase:
    """The B samples that one query buys, best first.

    Attributes:
        positions: int64 [B], positions in the shard set.
        scores: float64 [B], the score with which each was chosen.
        entropy: float [B], nats.
        tied: bool [B], whether its score equals that of a sample that was not bought.
        overlap: overlap of Grad-CAM and ROI of the bought samples; their ROIs are bought with the labels.
        unlabelled: int64 [N], positions of the pool from which they were chosen.
        labelled: int64 [L], positions of the samples that were labelled then.
        terms: parts of the score over `unlabelled`; see Query.
    """

    positions: np.ndarray
    scores: np.ndarray
    entropy: np.ndarray
    tied: np.ndarray
    overlap: Overlap
    unlabelled: np.ndarray
    labelled: np.ndarray
    terms: Mapping[str, np.ndarray]


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
        self._streams = streams
        ties = np.random.default_rng(streams["ties"]).permutation(len(dataset.pool))
        self.tie_order = np.zeros(len(dataset.keys), np.int64)  # one number per position in the shard set
        self.tie_order[dataset.pool] = ties

    def initial_set(self) -> np.ndarray:
        """Return the positions of the initial set, drawn at random from the pool, int64 [init]."""
        return np.random.default_rng(self._streams["pool"]).permutation(self.dataset.pool)[: self.config.init]

    def buy(self, labelled: np.ndarray, round_: int) -> Purchase:
        """Return the purchase for round `round_`, given the samples at `labelled` in the order of labelling."""
        needs = self.strategy.needs
        unlabelled = self.dataset.pool[~np.isin(self.dataset.pool, labelled)]
        rng = round_generator(self._streams["query"], round_)
        roi_of = self._shuffled_rois(unlabelled, rng) if "shuffled-roi" in needs else None
        scores = self.learner.score(unlabelled, needs | {"features"} if "draws" in needs else needs, roi_of)
        query = self.strategy(self._view(unlabelled, labelled, scores, round_, rng))
        positions = unlabelled[query.indices]
        if scores.overlap and roi_of is None:
            overlap = scores.overlap[query.indices]
        else:
            overlap = self._overlap_of_bought(positions)
        entropy = scores.entropy[query.indices]
        return Purchase(positions, query.scores, entropy, query.tied, overlap, unlabelled, labelled, query.terms)

    def _overlap_of_bought(self, positions: np.ndarray) -> Overlap:
        """Return the overlap of samples whose ROIs are bought with their labels, for the record."""
        overlap = self.learner.score(positions, {"roi"}).overlap
        assert overlap is not None
        return overlap

    def _shuffled_rois(self, unlabelled: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return whose ROI each sample at `unlabelled` is scored with: permuted among the samples that have one."""
        owners = unlabelled[self.dataset.has_roi[unlabelled]]
        owners = owners[np.argsort(self.tie_order[owners])]  # so that the draw does not depend on file names
        roi_of = np.arange(len(self.dataset.keys))
        roi_of[owners] = owners[rng.permutation(len(owners))]
        return roi_of[unlabelled]

    def _view(
        self, unlabelled: np.ndarray, labelled: np.ndarray, scores: Scores, round_: int, rng: np.random.Generator
    ) -> Pool:
        """Return the pool of the samples at `unlabelled` as the strategy may see it."""
        dataset, learner, needs = self.dataset, self.learner, self.strategy.needs
        private: dict[str, Any] = {"overlap": scores.overlap, "labels": dataset.labels[unlabelled]}
        if "features" in needs:
            private["features"] = scores.features
            private["labelled_features"] = learner.score(labelled, {"features"}).features
        if "draws" in needs:
            assert scores.features is not None
            private["draws"] = learner.draws(scores.features, rng)
        if "labelled-roi" in needs:
            private["labelled_roi"] = dataset.rois(labelled)
        if "maps" in needs:
            private["maps"] = MapStream(lambda: learner.maps(unlabelled))
            private["labelled_maps"] = MapStream(lambda: learner.maps(labelled))
        return Pool(
            keys=dataset.keys[unlabelled], logits=scores.logits, entropy=scores.entropy,
            labelled_keys=dataset.keys[labelled], labelled_labels=dataset.labels[labelled],
            labelled_groups=dataset.groups[labelled], groups=dataset.groups[unlabelled],
            classes=tuple(dataset.shards.classes), round=round_,
            budget=self.config.budget, rng=rng, tie_order=self.tie_order[unlabelled], config=self.config,
            needs=needs, name=self.strategy.name, private=private,
        )  # fmt: skip

"""Scored samples as the Pool that strategies see in a comparison, so that the same code ranks them here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from egal_bench.config import Config
from egal_bench.querying.score_files import Part
from egal_bench.strategies import BoundStrategy, Overlap, Pool


@dataclass(frozen=True, eq=False)
class FilledOverlap(Overlap):
    """An Overlap whose samples without ROI have a misalignment.

    Attributes:
        filled: float [N], D of every sample.
    """

    filled: np.ndarray

    @property
    def misalignment(self) -> np.ndarray:
        """Return D, float [N]."""
        return self.filled.copy()


@dataclass(frozen=True, eq=False)
class Labelled:
    """The L labelled samples that lie in the pools, as a strategy may see them.

    Attributes:
        keys: str [L].
        labels: int64 [L]; -1 in a set without labels.
        groups: str [L].
    """

    keys: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def none(cls) -> Labelled:
        """Return the empty labelled set."""
        texts = np.empty(0, str)
        return cls(texts, np.empty(0, np.int64), texts)


@dataclass(frozen=True)
class Ranker:
    """Runs one strategy on scored samples.

    Attributes:
        strategy: the strategy.
        config: the settings that it may read.
        classes: names of the classes.
        mean_misalignment: the mean D of all pool samples with ROI; None where no sample has one.
    """

    strategy: BoundStrategy
    config: Config
    classes: tuple[str, ...]
    mean_misalignment: float | None

    def scores_of_each(self, part: Part) -> np.ndarray:
        """Return the score of each sample by a row-wise strategy, float64 [n]; NaN where it has none.

        They equal the scores that the strategy gives in the whole pool.
        """
        if not len(part):
            return np.empty(0)
        overlap = self.filled(part.overlap, ("mean", "exclude"))
        order, rng, private = np.arange(len(part)), np.random.default_rng(0), {"overlap": overlap}
        query = self.strategy(self.view(part, order, rng, len(part), Labelled.none(), private))
        scores = np.empty(len(part))
        scores[query.indices] = query.scores
        if self._empty_roi == "exclude" and self.mean_misalignment is not None:
            scores[np.isnan(part.overlap.dice)] = np.nan  # such a sample has no score, so it comes after all others
        return scores

    @property
    def _empty_roi(self) -> str | None:
        return getattr(self.strategy.parameters, "empty_roi", None)

    def filled(self, overlap: Overlap, policies: Collection[str] = ("mean",)) -> Overlap:
        """Return the overlap of some samples, in which those without ROI have the mean D of the whole pool.

        Args:
            overlap: of some samples of the pool.
            policies: the values of `empty-roi` for which this is done.
        """
        without_roi = np.isnan(overlap.dice)
        if not without_roi.any() or self.mean_misalignment is None or self._empty_roi not in policies:
            return overlap
        filled = overlap.misalignment
        filled[without_roi] = self.mean_misalignment
        return FilledOverlap(overlap.intersection, overlap.cam_area, overlap.roi_area, overlap.dice, filled)

    def view(
        self, part: Part, tie_order: np.ndarray, rng: np.random.Generator, budget: int, labelled: Labelled,
        private: Mapping[str, Any],
    ) -> Pool:  # fmt: skip
        """Return samples as a Pool.

        Args:
            part: the samples, N.
            tie_order: int [N], see Pool.
            rng: the Generator of the query.
            budget: samples to choose.
            labelled: the labelled samples.
            private: what only a declaration opens, see Pool.
        """
        return Pool(
            keys=part.keys, logits=part.logits, entropy=part.entropy, labelled_keys=labelled.keys,
            labelled_labels=labelled.labels, labelled_groups=labelled.groups, groups=part.groups, classes=self.classes,
            round=1, budget=budget, rng=rng, tie_order=tie_order, config=self.config, needs=self.strategy.needs,
            name=self.strategy.name, private=private,
        )  # fmt: skip

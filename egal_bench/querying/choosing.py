"""The query of a strategy from the scores of all shards, in the mode in which the strategy reads a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from egal_bench.config import Config
from egal_bench.models.process import reproducible
from egal_bench.models.saving import SavedNetwork
from egal_bench.querying.best import Best, joined, tie_ranks
from egal_bench.querying.modes import Mode, mode_of, preselection
from egal_bench.querying.pool_view import Labelled, Ranker
from egal_bench.querying.pools import PoolSet, Scored
from egal_bench.querying.samples import Samples
from egal_bench.querying.score_files import Part
from egal_bench.querying.survey import Survey
from egal_bench.strategies import BoundStrategy

CANDIDATES = 20  # candidates of a set-wise strategy per sample that is chosen, by default
FEWEST_CANDIDATES = 10_000


@dataclass(frozen=True, eq=False)
class Chosen:
    """The samples that a strategy has chosen, best first. Arrays go by sample.

    Attributes:
        part: the samples.
        scores: float64 [K], the scores with which they were chosen; NaN where there is none.
        pools: str [K], the names of their pools.
        shards: str [K], the files of their shards.
        note: one sentence on how they were chosen.
    """

    part: Part
    scores: np.ndarray
    pools: np.ndarray
    shards: np.ndarray
    note: str


@dataclass(frozen=True, eq=False)
class Chooser:
    """Chooses the samples to annotate next.

    Attributes:
        strategy: the strategy.
        config: the settings that it may read; `budget` is the number of samples to choose.
        candidates: candidates of a set-wise strategy; None: 20 per sample that is chosen, at least 10,000.
        seed: seed of the order of ties and of random draws.
        network: the network, for the features of candidates.
        device: where it runs.
        sets: the shard sets.
        survey: of the scores of all shards.
        parts: yields the scores of all shards anew at each call.
    """

    strategy: BoundStrategy
    config: Config
    candidates: int | None
    seed: int
    network: SavedNetwork
    device: str
    sets: Sequence[PoolSet]
    survey: Survey
    parts: Callable[[], Iterator[Scored]]

    def choose(self) -> Chosen | None:
        """Return the chosen samples, all of them where there are fewer than asked for; None where there is none."""
        if not self.survey.samples:
            return None
        mode = mode_of(self.strategy)
        ranker = Ranker(self.strategy, self.config, self.network.classes, self.survey.mean_misalignment)
        if mode is Mode.ROW_WISE:
            return self._streamed(ranker, self.config.budget, "Every one was ranked.")
        if mode is Mode.WHOLE_POOL:
            note = "Every one was ranked, with a few numbers of each in memory."
            return self._ranked(ranker, self._everything(), note, is_part=False)
        return self._of_candidates(ranker)

    def _streamed(self, ranker: Ranker, number: int, note: str) -> Chosen:
        best = Best(number, self.seed)
        for scored in self.parts():
            best.add(scored.task.pool, scored.task.file.file, scored.part, ranker.scores_of_each(scored.part))
        assert best.part is not None
        return Chosen(best.part, best.scores, best.pools, best.shards, note)

    def _of_candidates(self, ranker: Ranker) -> Chosen:
        before = preselection(self.strategy, self.config)
        number = self.candidates or max(CANDIDATES * self.config.budget, FEWEST_CANDIDATES)
        candidates = self._streamed(replace(ranker, strategy=before), number, "")
        seen, total = len(candidates.scores), self.survey.samples
        note = f"{self.strategy.name} saw the {seen} best of {total} samples by {before.name} (--candidates)."
        return self._ranked(ranker, candidates, note, is_part=True)

    def _everything(self) -> Chosen:
        """Return every sample, in no particular order and without scores."""
        filled = [scored for scored in self.parts() if len(scored.part)]
        part = joined([scored.part for scored in filled])
        sizes = [len(scored.part) for scored in filled]
        pools = np.repeat([scored.task.pool for scored in filled], sizes)
        shards = np.repeat([scored.task.file.file for scored in filled], sizes)
        return Chosen(part, np.full(len(part), np.nan), pools, shards, "")

    def _ranked(self, ranker: Ranker, among: Chosen, note: str, *, is_part: bool) -> Chosen:
        """Return what the strategy chooses when it sees the samples `among` at once.

        They come in the order of their keys, those of one pool after each other. `is_part` says whether the pool has
        others.
        """
        order = np.lexsort((among.part.keys, among.pools))
        part, pools, shards = among.part[order], among.pools[order], among.shards[order]
        ties = np.empty(len(part), np.int64)
        ties[np.argsort(tie_ranks(pools, part.keys, self.seed), kind="stable")] = np.arange(len(part))
        rng, budget = np.random.default_rng(self.seed), min(self.config.budget, len(part))
        with reproducible(self.config.threads, tf32=self.config.precision == "tf32"):
            labelled, labelled_samples = self._labelled()
            private = self._private(self._samples(pools, part.positions), labelled_samples)
            private["overlap"] = ranker.filled(part.overlap) if is_part else part.overlap
            query = self.strategy(ranker.view(part, ties, rng, budget, labelled, private))
        rows = query.indices
        return Chosen(part[rows], query.scores, pools[rows], shards[rows], note)

    def _private(self, samples: Samples, labelled: Samples) -> dict[str, Any]:
        """Return what the strategy declares and the scores do not hold, by the names of `Pool.private`."""
        needs, private = self.strategy.needs, dict[str, Any]()
        if "features" in needs:
            private["features"] = samples.features()
            channels = private["features"].shape[1]
            none = np.empty((0, channels), np.float32)
            private["labelled_features"] = labelled.features() if len(labelled) else none
        if "maps" in needs:
            private |= {"maps": samples.maps(), "labelled_maps": labelled.maps()}
        if "labelled-roi" in needs:
            private["labelled_roi"] = labelled.rois()
        return private

    def _labelled(self) -> tuple[Labelled, Samples]:
        """Return the labelled samples that lie in the pools, in the order of `_ranked`."""
        filled = self.survey.labelled
        if not filled:
            return Labelled.none(), self._samples(np.empty(0, str), np.empty(0, np.int64))
        part = joined([scored.labelled for scored in filled])
        pools = np.repeat([scored.task.pool for scored in filled], [len(scored.labelled) for scored in filled])
        order = np.lexsort((part.keys, pools))
        samples = self._samples(pools[order], part.positions[order])
        return Labelled(part.keys[order], samples.labels(), part.groups[order]), samples

    def _samples(self, pools: np.ndarray, positions: np.ndarray) -> Samples:
        sets = {pool.name: pool for pool in self.sets}
        return Samples(pools, positions, self.network.network, self.config, self.device, sets)

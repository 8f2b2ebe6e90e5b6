"""What a strategy may see: the unlabelled pool and the labelled set, without what it has not declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.strategies.query import Query
from egal_bench.strategies.terms import fill_empty

# What a strategy may declare in `needs`, and what the declaration lets it read
NEEDS = {
    "roi": "the overlap of the Grad-CAM with the ROI of every pool sample; each of these ROIs counts as a mask",
    "labelled-roi": "the ROIs of the labelled samples alone; each of these ROIs counts as a mask",
    "features": "the pooled features of the pool and of the labelled samples",
    "maps": "the feature maps and class maps of the pool and of the labelled samples, batch by batch",
    "draws": "the logits of the pool from stochastic heads: of bootstrap resamples (frozen) or of dropout (finetune)",
    "shuffled-roi": "with `roi`: the overlap with the ROI of another pool sample, drawn at random",
    "pool-labels": "the true labels of the pool: an oracle, for controls only",
}


@dataclass(frozen=True, eq=False)
class Overlap:
    """The overlap of each sample's thresholded Grad-CAM with its ROI.

    Attributes:
        intersection: int [N], pixels of the ROI that the Grad-CAM covers.
        cam_area: int [N], pixels of the thresholded Grad-CAM.
        roi_area: int [N], pixels of the ROI.
        dice: float [N], thresholded or soft as configured; NaN for a sample without ROI.
    """

    intersection: np.ndarray
    cam_area: np.ndarray
    roi_area: np.ndarray
    dice: np.ndarray

    @property
    def misalignment(self) -> np.ndarray:
        """Return D = 1 − Dice, float [N]; NaN for a sample without ROI."""
        return 1.0 - self.dice

    def __getitem__(self, rows: np.ndarray) -> Overlap:
        """Return the overlap of the samples at `rows`, int [M]."""
        return Overlap(self.intersection[rows], self.cam_area[rows], self.roi_area[rows], self.dice[rows])


@dataclass(frozen=True, eq=False)
class MapBatch:
    """The feature maps of B consecutive samples.

    Attributes:
        maps: float32 [B, C, h, w].
        class_maps: float32 [B, h, w], Σ_c alpha_c·A_c of the predicted class; Grad-CAM is its positive part.
    """

    maps: np.ndarray
    class_maps: np.ndarray


class MapStream:
    """The feature maps of samples, in batches. Every iteration is a new pass, since they need not fit into memory.

    Args:
        start: starts a pass.
    """

    def __init__(self, start: Callable[[], Iterable[MapBatch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[MapBatch]:
        return iter(self._start())


@dataclass(frozen=True, eq=False)
class Pool:
    """The N unlabelled samples and the L labelled ones, as a strategy sees them. All arrays are read-only.

    Attributes:
        keys: str [N], in ascending order.
        logits: float [N, K], the network's output per class.
        entropy: float [N], of the predicted distribution, nats.
        labelled_keys: str [L], in the order of labelling, as all `labelled_…` arrays are.
        labelled_labels: int [L], the classes that the oracle has revealed.
        labelled_groups: str [L], the group (patient) of each labelled sample.
        groups: str [N], the group (patient) of each pool sample; "" where the data set names none.
        classes: names of the K classes.
        round: number of this query, 1 for the first.
        budget: labels that this query buys.
        rng: the Generator of this query.
        tie_order: int [N], a permutation: of equal scores, the sample with the smaller number comes first.
        config: the settings of the comparison.
        needs: what the strategy has declared.
        name: the strategy's name, for messages.
        private: what only a declaration opens: "overlap", "labelled_roi", "features", "labelled_features", "maps",
            "labelled_maps", "draws", "labels".
    """

    keys: np.ndarray
    logits: np.ndarray
    entropy: np.ndarray
    labelled_keys: np.ndarray
    labelled_labels: np.ndarray
    labelled_groups: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    round: int
    budget: int
    rng: np.random.Generator
    tie_order: np.ndarray
    config: Config
    needs: frozenset[str]
    name: str
    private: Mapping[str, Any]

    def __post_init__(self) -> None:
        arrays = [value for value in vars(self).values() if isinstance(value, np.ndarray)]
        arrays += [value for value in self.private.values() if isinstance(value, np.ndarray)]
        if (overlap := self.private.get("overlap")) is not None:
            arrays += list(vars(overlap).values())
        for array in arrays:
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Return the predicted class distribution, float [N, K]."""
        exp = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        probabilities = exp / exp.sum(axis=1, keepdims=True)
        probabilities.flags.writeable = False
        return probabilities

    @property
    def overlap(self) -> Overlap:
        """Return the overlap of each pool sample's Grad-CAM with its ROI. Needs "roi".

        With "shuffled-roi", the ROIs are permuted among the samples that have one.
        """
        return self._declared("roi", "overlap")

    @cached_property
    def misalignment(self) -> np.ndarray:
        """Return D = 1 − Dice(Grad-CAM, ROI), float [N], with `--empty-roi` for samples without ROI. Needs "roi"."""
        misalignment = fill_empty(self.overlap.misalignment, self.config.empty_roi)
        misalignment.flags.writeable = False
        return misalignment

    @property
    def features(self) -> np.ndarray:
        """Return the pooled features of the pool, float [N, C]. Needs "features"."""
        return self._declared("features", "features")

    @property
    def labelled_features(self) -> np.ndarray:
        """Return the pooled features of the labelled samples, float [L, C]. Needs "features"."""
        return self._declared("features", "labelled_features")

    @property
    def labelled_roi(self) -> np.ndarray:
        """Return the ROIs of the labelled samples, bool [L, H, W]; all False without ROI. Needs "labelled-roi"."""
        return self._declared("labelled-roi", "labelled_roi")

    @property
    def maps(self) -> MapStream:
        """Return the feature maps of the pool, in its order, as a MapStream. Needs "maps"."""
        return self._declared("maps", "maps")

    @property
    def labelled_maps(self) -> MapStream:
        """Return the feature maps of the labelled samples, in their order, as a MapStream. Needs "maps"."""
        return self._declared("maps", "labelled_maps")

    @property
    def draws(self) -> np.ndarray:
        """Return the logits of the pool from T stochastic heads, float [N, T, K]. Needs "draws"."""
        return self._declared("draws", "draws")

    @property
    def labels(self) -> np.ndarray:
        """Return the true classes of the pool, int [N]. Needs "pool-labels", which makes the strategy an oracle."""
        return self._declared("pool-labels", "labels")

    @property
    def labels_revealed(self) -> np.ndarray:
        """Return `labelled_labels` under its earlier name."""
        return self.labelled_labels

    def rank(self, scores: np.ndarray) -> Query:
        """Return the whole pool by descending score, float [N]; ties in `tie_order`, NaN last."""
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != self.keys.shape:
            raise BenchError(
                f"strategy {self.name!r} ranks scores {list(scores.shape)} of a pool of {len(self)} samples"
            )
        order = np.lexsort((self.tie_order, -scores))  # NaN sorts last
        return Query(order, scores[order])

    def _declared(self, need: str, value: str) -> Any:
        if need not in self.needs:
            raise BenchError(
                f"strategy {self.name!r} reads what it does not declare: add {need!r} to its needs, "
                "so that its cost is counted"
            )
        return self.private[value]

"""Acquisition strategies: from a view of the unlabelled pool to ranked indices. No torch: they decide."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from egal_bench.config import Config
from egal_bench.errors import BenchError, unknown


class Strategy(Protocol):
    """Ranked indices into the pool, best first, at least `pool.budget` of them: int array, no repeats."""

    needs_roi: bool  # it may read pool.acquisition and pool.misalignment: every ROI of the pool is then paid for
    needs_features: bool  # it may read pool.features and pool.labelled_features

    def __call__(self, pool: Pool) -> np.ndarray: ...


@dataclass(frozen=True)
class Overlap:
    """Overlap of each sample's thresholded Grad-CAM with its ROI: int arrays [N], pixels of the ROI."""

    intersection: np.ndarray
    cam_area: np.ndarray
    roi_area: np.ndarray
    dice: np.ndarray  # float [N], thresholded or soft as configured; NaN without ROI


class Pool:
    """What a strategy may see of the N unlabelled samples, in the order of their keys.

    Attributes:
        keys: str [N]. logits: float [N, K]. entropy: float [N], nats.
        labels_revealed: int [L], the classes of the L labelled samples.
        budget: labels that this query buys. rng: the query's Generator. config: the comparison's settings.
        scores: float [N], what `rank` was last given; NaN until then.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        keys: np.ndarray,
        logits: np.ndarray,
        entropy: np.ndarray,
        labels_revealed: np.ndarray,
        budget: int,
        rng: np.random.Generator,
        config: Config,
        overlap: Overlap | None = None,
        features: np.ndarray | None = None,
        labelled_features: np.ndarray | None = None,
    ) -> None:
        self.keys, self.logits, self.entropy = keys, logits, entropy
        self.labels_revealed, self.budget, self.rng, self.config = labels_revealed, budget, rng, config
        self.scores = np.full(len(keys), np.nan)
        self._strategy, self._overlap = strategy, overlap
        self._features, self._labelled_features = features, labelled_features

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Predicted class distribution, float [N, K]."""
        exp = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)

    @property
    def acquisition(self) -> Overlap:
        """Overlap of each sample's Grad-CAM with its ROI; needs_roi."""
        return self._declared("needs_roi", self._overlap)

    @property
    def features(self) -> np.ndarray:
        """Pooled features, float [N, C]; needs_features."""
        return self._declared("needs_features", self._features)

    @property
    def labelled_features(self) -> np.ndarray:
        """Pooled features of the labelled samples, float [L, C]; needs_features."""
        return self._declared("needs_features", self._labelled_features)

    @cached_property
    def misalignment(self) -> np.ndarray:
        """D = 1 - Dice(Grad-CAM, ROI), float [N]; needs_roi. Without ROI: by `empty_roi` 0, the pool's mean, or NaN."""
        misalignment = 1.0 - self.acquisition.dice
        empty = np.isnan(misalignment)
        if self.config.empty_roi == "zero" or empty.all():
            misalignment[empty] = 0.0
        elif self.config.empty_roi == "mean":
            misalignment[empty] = misalignment[~empty].mean()
        return misalignment

    def scale(self, term: np.ndarray) -> np.ndarray:
        """`term` [N] on the configured scale: as it is, min-max to 0..1, or mid-rank to 0..1 (NaN stays NaN)."""
        known = term[~np.isnan(term)]
        if self.config.normalise == "raw" or not len(known):
            return term
        if self.config.normalise == "rank":
            from scipy.stats import rankdata

            return (rankdata(term, nan_policy="omit") - 0.5) / len(known)
        span = known.max() - known.min()
        return (term - known.min()) / span if span > 0 else term * 0.0

    def rank(self, scores: np.ndarray) -> np.ndarray:
        """Indices by descending score; ties by key, NaN last. The scores go into the selections table."""
        self.scores = np.asarray(scores, dtype=np.float64)
        return np.argsort(-self.scores, kind="stable")  # numpy sorts NaN last

    def _declared(self, need: str, value: Any) -> Any:
        if not getattr(self._strategy, need):
            raise BenchError(
                f"strategy {_name(self._strategy)!r} reads what it does not declare: add `{need} = True` to it, "
                "so that its cost is counted"
            )
        return value


def strategy(name: str, *, needs_roi: bool = False, needs_features: bool = False) -> Callable[[Any], Strategy]:
    """Decorator that makes a function Pool -> ranked indices the strategy `name`."""

    def register(function: Any) -> Strategy:
        function.needs_roi, function.needs_features = needs_roi, needs_features
        BUILT_IN[name] = function
        return function

    return register


BUILT_IN: dict[str, Strategy] = {}


@strategy("random")
def random(pool: Pool) -> np.ndarray:
    """Uniform, without replacement: the baseline every other strategy is compared with."""
    return pool.rng.permutation(len(pool))


@strategy("entropy")
def entropy(pool: Pool) -> np.ndarray:
    """Largest entropy of the predicted distribution."""
    return pool.rank(pool.entropy)


@strategy("margin")
def margin(pool: Pool) -> np.ndarray:
    """Smallest gap between the two most probable classes."""
    second, first = np.partition(pool.probabilities, -2, axis=1)[:, -2:].T
    return pool.rank(second - first)


@strategy("least-confidence")
def least_confidence(pool: Pool) -> np.ndarray:
    """Smallest probability of the predicted class."""
    return pool.rank(1.0 - pool.probabilities.max(axis=1))


@strategy("egal", needs_roi=True)
def egal(pool: Pool) -> np.ndarray:
    """EG-AL: H + lambda*D, the entropy plus the Grad-CAM's misalignment with the ROI (arXiv 2602.13308)."""
    return pool.rank(pool.scale(pool.entropy) + pool.config.lambda_ * pool.scale(pool.misalignment))


@strategy("egal-convex", needs_roi=True)
def egal_convex(pool: Pool) -> np.ndarray:
    """EG-AL as in its author's code: lambda*H + (1-lambda)*D with --convex-lambda."""
    share = pool.config.convex_lambda
    return pool.rank(share * pool.scale(pool.entropy) + (1 - share) * pool.scale(pool.misalignment))


@strategy("misalignment-only", needs_roi=True)
@strategy("misalignment", needs_roi=True)
def misalignment(pool: Pool) -> np.ndarray:
    """Largest misalignment D alone: EG-AL without its uncertainty."""
    return pool.rank(pool.misalignment)


def available() -> dict[str, str]:
    """Name to one-line description of every strategy that can be named: built in and by entry point."""
    listed = {name: (found.__doc__ or "").strip().partition("\n")[0] for name, found in BUILT_IN.items()}
    return listed | {point.name: f"from {point.value}" for point in _entry_points().values()}


def find(name: str) -> Strategy:
    """The strategy `name`: built in, of an entry point `egal_bench.strategies`, or `module:Name`.

    Raises BenchError naming the nearest known strategy, or what of module:Name is missing.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    points = _entry_points()
    if name in points:
        return _checked(name, points[name].load())
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown("strategy", name, [*BUILT_IN, *points])
    if os.getcwd() not in sys.path:  # a console script does not look beside itself
        sys.path.append(os.getcwd())
    try:
        return _checked(name, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise BenchError(f"--strategies {name}: {error}") from None


def _entry_points() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group="egal_bench.strategies")}


def _checked(name: str, found: Any) -> Strategy:
    made = found() if isinstance(found, type) else found
    missing = [need for need in ("needs_roi", "needs_features") if not isinstance(getattr(made, need, None), bool)]
    if missing or not callable(made):
        raise BenchError(
            f"--strategies {name}: not a strategy: it must be callable and set {' and '.join(missing)} to True or False"
        )
    return made


def _name(found: Strategy) -> str:
    return getattr(found, "__name__", type(found).__name__)

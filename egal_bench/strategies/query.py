"""The answer of a strategy: which samples to buy, best first, and with which score each was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from egal_bench.errors import BenchError


@dataclass(frozen=True, eq=False)
class Query:
    """Ranked indices into the pool and their scores.

    Attributes:
        indices: int [M], distinct, best first, M at least the budget.
        scores: float64 [M], the score with which each sample was chosen; NaN where there was none.
        tied: bool [M], whether some sample that `checked` has cut off has the same score.
        terms: parts of the score by name, float [N] over the whole pool, for the record alone;
            "predicted_misalignment" is the D that a strategy has predicted.
    """

    indices: np.ndarray
    scores: np.ndarray
    tied: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    terms: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def checked(cls, answer: object, name: str, budget: int, size: int) -> Query:
        """Return `answer` as a Query of exactly `budget` samples of a pool of `size` samples.

        Args:
            answer: what the strategy `name` returned: a Query, or indices alone, which then have no scores.

        Raises:
            BenchError: the indices are too few, no integers, repeated or outside the pool, or the scores do not fit.
        """
        terms: Mapping[str, np.ndarray] = {}
        if isinstance(answer, cls):
            indices, scores, terms = np.asarray(answer.indices), np.asarray(answer.scores), answer.terms
        else:
            indices = np.asarray(answer)
            scores = np.full(indices.shape, np.nan)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or len(indices) < budget:
            raise BenchError(
                f"strategy {name!r} returned {indices.dtype} {list(indices.shape)}: "
                f"it must return at least {budget} ranked indices"
            )
        if len(np.unique(indices)) < len(indices) or indices.min() < 0 or indices.max() >= size:
            raise BenchError(f"strategy {name!r} returned repeated indices or indices outside 0..{size - 1}")
        if scores.shape != indices.shape or scores.dtype.kind not in "fiu":
            raise BenchError(
                f"strategy {name!r} returned scores {scores.dtype} {list(scores.shape)} "
                f"for {len(indices)} indices: it must return one number per index (NaN is allowed)"
            )
        scores, terms = scores.astype(np.float64), checked_terms(terms, name, size)
        return cls(indices[:budget].astype(np.int64), scores[:budget], np.isin(scores[:budget], scores[budget:]), terms)


def checked_terms(terms: object, name: str, size: int) -> dict[str, np.ndarray]:
    """Return the `terms` of the strategy `name`, float64 [size] each. Raises BenchError where they are not such."""
    if not isinstance(terms, Mapping):
        raise BenchError(f"strategy {name!r} returned terms {type(terms).__name__}: they must map names to numbers")
    arrays = {str(term): np.asarray(values) for term, values in terms.items()}
    for term, values in arrays.items():
        if values.shape != (size,) or values.dtype.kind not in "fiu":
            raise BenchError(
                f"strategy {name!r} returned the term {term!r} as {values.dtype} {list(values.shape)}: it must be one "
                f"number for each of the {size} samples in the pool (NaN is allowed)"
            )
    return {term: values.astype(np.float64) for term, values in arrays.items()}

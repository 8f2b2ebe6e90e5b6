"""The earlier form of a strategy: a callable with `needs_roi` and `needs_features` that returns ranked indices."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from egal_bench.errors import BenchError
from egal_bench.strategies.declaration import Strategy
from egal_bench.strategies.pool import Overlap, Pool
from egal_bench.strategies.query import Query

ATTRIBUTES = {"needs_roi": "roi", "needs_features": "features"}


class LegacyPool(Pool):
    """A Pool whose `rank` returns plain indices, as strategies of the earlier form expect."""

    @property
    def acquisition(self) -> Overlap:
        """Return `overlap` under its earlier name."""
        return self.overlap

    def rank(self, scores: np.ndarray) -> np.ndarray:  # type: ignore[override]
        """Return the indices of the whole pool by descending score, and remember the scores for the table."""
        query = super().rank(scores)
        by_index = np.full(len(self), np.nan)
        by_index[query.indices] = query.scores
        object.__setattr__(self, "scores", by_index)
        return query.indices

    def scale(self, term: np.ndarray) -> np.ndarray:
        """Return `term`, float [N], on the scale of `--normalise`."""
        from egal_bench.strategies.terms import scaled

        return scaled(term, self.config.normalise)


def from_two_attributes(name: str, candidate: Any) -> Strategy:
    """Return a Strategy that calls `candidate`, a callable or a class of callables, with a LegacyPool.

    Raises:
        BenchError: `candidate` is not callable or lacks one of the two attributes.
    """
    function = candidate() if isinstance(candidate, type) else candidate
    missing = [attribute for attribute in ATTRIBUTES if not isinstance(getattr(function, attribute, None), bool)]
    if missing or not callable(function):
        raise BenchError(
            f"--strategies {name}: not a strategy: decorate it with @egal_bench.strategy, or make it callable and set "
            f"{' and '.join(missing or ATTRIBUTES)} to True or False"
        )

    def answer(pool: Pool) -> Query:
        fields = {field: getattr(pool, field) for field in Pool.__dataclass_fields__}
        legacy = LegacyPool(**fields)
        indices = np.asarray(function(legacy))
        scores = getattr(legacy, "scores", np.full(len(pool), np.nan))
        valid = indices.ndim == 1 and indices.dtype.kind in "iu" and np.all((indices >= 0) & (indices < len(pool)))
        return Query(indices, scores[indices] if valid else np.full(indices.shape, np.nan))

    answer.__doc__ = inspect.getdoc(candidate)
    needs = frozenset(need for attribute, need in ATTRIBUTES.items() if getattr(function, attribute))
    defining = candidate if isinstance(candidate, type) or inspect.isfunction(candidate) else type(candidate)
    return Strategy(name, answer, needs, source=inspect.getsourcefile(defining) or "<unknown>")

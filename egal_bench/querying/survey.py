"""A first pass over the scores of a pool: what a query must know of all samples before it ranks the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import fsum

import numpy as np

from egal_bench.querying.pools import Scored


@dataclass(frozen=True, eq=False)
class Survey:
    """What the scores of all shards say together.

    Attributes:
        samples: pool samples without a label.
        with_roi: those of them that have an ROI.
        mean_misalignment: the mean D of those with ROI, rounded once, so that it depends on no order; None without any.
        labelled: the labelled samples, where a shard has any.
    """

    samples: int
    with_roi: int
    mean_misalignment: float | None
    labelled: list[Scored]

    @property
    def labelled_with_roi(self) -> int:
        """Return the number of labelled samples in the pools that have an ROI."""
        return sum(int((scored.labelled.overlap.roi_area > 0).sum()) for scored in self.labelled)

    @property
    def labelled_keys(self) -> frozenset[str]:
        """Return the keys of the labelled samples that lie in the pools."""
        return frozenset(key for scored in self.labelled for key in scored.labelled.keys.tolist())


def survey(parts: Iterable[Scored]) -> Survey:
    """Return the Survey of the scores of all shards."""
    samples = with_roi = 0
    labelled = []

    def known() -> Iterator[float]:
        nonlocal samples, with_roi
        for scored in parts:
            misalignment = scored.part.overlap.misalignment
            values = misalignment[~np.isnan(misalignment)]
            samples, with_roi = samples + len(scored.part), with_roi + len(values)
            if len(scored.labelled):
                labelled.append(Scored(scored.task, scored.part[:0], scored.labelled))
            yield from values.tolist()

    total = fsum(known())
    return Survey(samples, with_roi, total / with_roi if with_roi else None, labelled)

"""The protocol of a learner: what a run needs of a regime."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np

from egal_bench.scoring.scores import Scores


class Learner(Protocol):
    """Fits a model to the labelled samples and scores others with it. Positions are int64, in the shard set."""

    def fit(self, labelled: np.ndarray, round_: int) -> np.ndarray:
        """Train on the samples at `labelled`, in the order of labelling; return those whose ROI the training used."""
        ...

    def score(self, positions: np.ndarray, needs: Collection[str]) -> Scores:
        """Return the Scores of the samples at `positions`.

        Args:
            needs: "roi" for the overlap of Grad-CAM and ROI, "features" for the pooled features.
        """
        ...

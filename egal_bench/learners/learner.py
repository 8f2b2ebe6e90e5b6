"""The protocol of a learner: what a run needs of a regime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from egal_bench.scoring.scores import Scores

if TYPE_CHECKING:
    from egal_bench.scoring.class_maps import ClassMaps


# What the learners of both regimes give to strategies, of strategies.pool.NEEDS
GIVEN = frozenset({"roi", "shuffled-roi", "features", "pool-labels"})


class Learner(Protocol):
    """Fits a model to the labelled samples and scores others with it. Positions are int64, in the shard set."""

    def fit(self, labelled: np.ndarray, round_: int) -> np.ndarray:
        """Train on the samples at `labelled`, in the order of labelling; return those whose ROI the training used."""
        ...

    def score(self, positions: np.ndarray, needs: Collection[str], roi_of: np.ndarray | None = None) -> Scores:
        """Return the Scores of the samples at `positions`.

        Args:
            positions: int64 [N].
            needs: "roi" for the overlap of Grad-CAM and ROI, "features" for the pooled features.
            roi_of: int64 [N], the positions whose ROIs take the place of the samples' own; None: their own.
        """
        ...

    def class_maps(self, positions: np.ndarray) -> ClassMaps:
        """Return the class maps of the predicted classes of a few samples, at the resolution of the features."""
        ...

    def state(self) -> dict[str, bytes]:
        """Return the content by name of what the next round needs of this one; {} where a round starts anew."""
        ...

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Take over what `state` has returned after the last finished round."""
        ...

    def network_file(self) -> dict[str, bytes]:
        """Return the present network as {"network.safetensors": content}."""
        ...

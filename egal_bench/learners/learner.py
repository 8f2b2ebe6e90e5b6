"""The protocol of a learner: what a run needs of a regime."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from egal_bench.config import Config
from egal_bench.scoring.scores import Scores
from egal_bench.strategies.pool import NEEDS, MapBatch

if TYPE_CHECKING:
    from egal_bench.scoring.class_maps import ClassMaps


DRAWS = 20  # stochastic heads, T


def given(config: Config) -> frozenset[str]:
    """Return what strategies can read with the settings of `config`: keys of NEEDS."""
    no_draws = config.regime == "finetune" and not config.head_dropout
    return frozenset(NEEDS) - ({"draws"} if no_draws else set())


@dataclass(frozen=True, eq=False)
class Fit:
    """What one round of training has used and reached.

    Loss and accuracy are measured after the last step, in evaluation mode and without augmentation, on the samples that
    were trained on.

    Attributes:
        rois: int64 [M], positions of the samples whose ROI the training used.
        loss: mean negative log-likelihood of the true class in nats, without class weights, penalty or explanation.
        accuracy: share of the samples whose class is predicted, 0 to 1.
        steps: steps of the optimiser; 0 in the frozen regime, which solves for the head.
    """

    rois: np.ndarray
    loss: float
    accuracy: float
    steps: int


class Learner(Protocol):
    """Fits a model to the labelled samples and scores others with it. Positions are int64, in the shard set."""

    def fit(self, labelled: np.ndarray, round_: int) -> Fit:
        """Train on the samples at `labelled`, in the order of labelling."""
        ...

    def score(self, positions: np.ndarray, needs: Collection[str], roi_of: np.ndarray | None = None) -> Scores:
        """Return the Scores of the samples at `positions`.

        Args:
            positions: int64 [N].
            needs: "roi" for the overlap of Grad-CAM and ROI, "features" for the pooled features.
            roi_of: int64 [N], the positions whose ROIs take the place of the samples' own; None: their own.
        """
        ...

    def draws(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the logits of DRAWS stochastic heads, float32 [N, T, K], for pooled features float32 [N, C].

        The heads are drawn from `rng` once, so they are the same for all samples.
        """
        ...

    def maps(self, positions: np.ndarray) -> Iterator[MapBatch]:
        """Yield the feature maps and class maps of the samples at `positions`, in order, batch by batch."""
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

"""What a report asks of the runs, and the words and units of its answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from egal_bench.errors import BenchError, unknown
from egal_bench.statistics.outcomes import METRICS
from egal_bench.statistics.significance import TESTS

SHOWN_METRICS = (*METRICS, "test_dice")
LABELS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auc": "macro AUC", "macro_f1": "macro F1",
    "nll": "NLL", "ece": "ECE", "test_dice": "Dice of Grad-CAM and ROI",
}  # fmt: skip
OUTCOMES = {"aubc": "averaged over the labels (AUBC)", "final": "after the last round"}
SEED = 2602  # seed of every bootstrap
PRIMARY = "aubc"  # the verdict rests on this outcome, which was fixed before any result was seen


@dataclass(frozen=True)
class Question:
    """What the report asks of the runs.

    Attributes:
        baseline: name of the strategy that the others are compared with.
        metric: one of METRICS.
        margin: smaller differences do not matter; in points: 1 is 0.01 of the metric (for nll, 0.01 nats).
        test: one of `significance.TESTS`.
        alpha: level of each family of tests.
    """

    baseline: str = "random"
    metric: str = "accuracy"
    margin: float = 1.0
    test: str = "sign-flip"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Raise BenchError for a value that is not allowed."""
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if self.test not in TESTS:
            raise unknown("test", self.test, TESTS)
        if not (np.isfinite(self.margin) and self.margin > 0):
            raise BenchError(f"--margin {self.margin:g}: must be a positive number of points, such as 1")

    def generator(self) -> np.random.Generator:
        """Return a new Generator, always of the same seed, so that the same folders always give the same report."""
        return np.random.default_rng(SEED)


def factor(metric: str) -> float:
    """Return the factor from the metric to the unit in which it is shown: 100 for points, 1 for nats."""
    return 1.0 if metric == "nll" else 100.0


def unit(metric: str) -> str:
    """Return the unit in which a difference of the metric is shown."""
    return "nats" if metric == "nll" else "points"

"""Classification metrics on the test set."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

ECE_BINS = 15


def evaluate(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced_accuracy, macro_auc (one class against the others), macro_f1, nll (nats) and ece.

    Args:
        logits: float [N, K].
        labels: int [N], with every class present.
    """
    classes = logits.shape[1]
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p, predicted = np.exp(log_p), logits.argmax(axis=1)
    counts = np.bincount(classes * labels + predicted, minlength=classes * classes).reshape(classes, classes)
    right, true, claimed = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return {
        "accuracy": float(right.sum() / len(labels)),
        "balanced_accuracy": float((right / true).mean()),
        "macro_auc": float(np.mean([auc(p[:, k], labels == k) for k in range(classes)])),
        "macro_f1": float((2 * right / (true + claimed)).mean()),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
        "ece": expected_calibration_error(p, labels),
    }


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a positive sample scores above a negative one.

    A tie counts half. The area follows from the rank sum of the positives (Hanley and McNeil 1982).

    Args:
        score: float [N].
        positive: bool [N], with both values present.
    """
    ordered = np.sort(score)
    below, upto = (np.searchsorted(ordered, score[positive], side) for side in ("left", "right"))
    ones, zeros = int(positive.sum()), int((~positive).sum())
    won = (below + upto).sum() / 2 - ones * ones / 2  # against all samples, less against each other
    return float(won / (ones * zeros))


def expected_calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean |accuracy - confidence| over ECE_BINS equal bins of the top probability, weighted by counts.

    See Guo et al. 2017, "On calibration of modern neural networks".

    Args:
        p: float [N, K], predicted distributions.
        labels: int [N].
    """
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gap = np.bincount(bins, correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(labels))

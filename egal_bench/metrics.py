"""What a model is worth on the test set."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

ECE_BINS = 15


def evaluate(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """accuracy, balanced_accuracy, macro_auc (one against the rest), macro_f1, nll (nats) and ece.

    Args:
        logits: float [N, K]. labels: int [N], every class present.
    """
    from sklearn import metrics

    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p, predicted = np.exp(log_p), logits.argmax(axis=1)
    one_hot = np.eye(logits.shape[1])[labels]
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(labels, predicted)),
        "macro_auc": float(metrics.roc_auc_score(one_hot, p, average="macro")),
        "macro_f1": float(metrics.f1_score(labels, predicted, average="macro")),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
        "ece": expected_calibration_error(p, labels),
    }


def expected_calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    """Mean |accuracy - confidence| over ECE_BINS equal bins of the top probability, weighted by their counts.

    Guo et al. 2017, "On calibration of modern neural networks". p: float [N, K]. labels: int [N].
    """
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gap = np.bincount(bins, correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(labels))

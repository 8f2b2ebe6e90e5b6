"""Test-set metrics against PyTorch, torchmetrics and counting."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from egal_bench.statistics.metrics import ECE_BINS, evaluate


def sample(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that tell something of the class, and labels in which every class is present."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n)])
    return (rng.normal(size=(len(labels), classes)) + 1.5 * np.eye(classes)[labels]).astype(np.float32), labels


def auc_by_counting(score: np.ndarray, positive: np.ndarray) -> float:
    pairs = itertools.product(score[positive], score[~positive])
    return float(np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(3, 60), st.integers(2, 6))
def test_metrics_agree_with_their_definitions(seed, n, classes):
    logits, labels = sample(seed, n, classes)
    metrics = evaluate(logits, labels)
    predicted = logits.argmax(1)
    recalls = [np.mean(predicted[labels == k] == k) for k in range(classes)]
    p = torch.softmax(torch.from_numpy(logits).double(), 1)
    assert metrics["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert metrics["nll"] == pytest.approx(
        F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    )
    aucs = [auc_by_counting(p[:, k].numpy(), labels == k) for k in range(classes)]
    assert metrics["macro_auc"] == pytest.approx(np.mean(aucs))
    ece = multiclass_calibration_error(p.float(), torch.from_numpy(labels), classes, n_bins=ECE_BINS, norm="l1")
    assert metrics["ece"] == pytest.approx(ece.item(), abs=1e-5)


def test_macro_f1_counts_a_never_predicted_class_as_zero():
    logits = np.array([[2.0, 1.0, 0.0]] * 3, np.float32)  # always class 0
    assert evaluate(logits, np.array([0, 1, 2]))["macro_f1"] == pytest.approx((2 * 1 / (2 * 1 + 2)) / 3)


def test_ties_of_a_score_count_half():
    logits = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    assert evaluate(logits, np.array([0, 1, 1, 0]))["macro_auc"] == (2 * 1 + 2 * 0.5) / 4

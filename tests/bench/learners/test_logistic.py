"""The linear head of the frozen regime against scikit-learn."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from egal_bench.learners.logistic import logistic_regression


def problem(seed: int, n: int, channels: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, C] that tell something of the class, and labels [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, channels)) + np.eye(classes, channels)[labels], labels


@settings(max_examples=20)
@given(
    st.integers(0, 999), st.integers(8, 60), st.integers(4, 90), st.integers(3, 5), st.sampled_from([0.01, 0.1, 1.0])
)
def test_head_is_scikit_learns_logistic_regression(seed, n, channels, classes, l2):
    x, labels = problem(seed, n, channels, classes)
    labels[:classes] = np.arange(classes)  # scikit-learn leaves out absent classes
    weight, bias = logistic_regression(x, labels, classes, l2)
    reference = LogisticRegression(C=1 / (n * l2), tol=1e-10, max_iter=20_000).fit(x, labels)
    p = torch.softmax(torch.from_numpy(x @ weight.T + bias), 1).numpy()
    np.testing.assert_allclose(weight, reference.coef_, atol=2e-3)
    np.testing.assert_allclose(p, reference.predict_proba(x), atol=1e-3)


def test_class_without_labels_stays_improbable():
    x, labels = problem(0, 40, 6, 2)
    weight, bias = logistic_regression(x, labels, 3, 0.01)
    p = torch.softmax(torch.from_numpy(x @ weight.T + bias), 1).numpy()
    assert p[:, 2].max() < 0.05

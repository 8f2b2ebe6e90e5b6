"""The penalty of the linear head: as scikit-learn's cross-validation chooses it; odd labelled sets have an answer."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from egal_bench.config import Config, resolve
from egal_bench.errors import BenchError
from egal_bench.learners import penalty
from egal_bench.learners.frozen import FrozenLearner
from egal_bench.learners.logistic import logistic_regression
from egal_bench.learners.penalty import GRID, PATIENCE, chosen_penalty, held_out_losses
from egal_bench.scoring.features import Features
from egal_bench.statistics.folds import FOLDS, folds_of


def problem(seed, n, channels, classes, signal=1.5):
    """Features [n, channels] with one direction per class, and labels; every class has at least one sample."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    return rng.normal(size=(n, channels)) + signal * np.eye(classes, channels)[labels], labels


def reference_losses(x, labels, folds):
    """The mean held-out NLL of each penalty of GRID, by scikit-learn; classes that are absent are left out."""
    losses, samples = np.zeros(len(GRID)), 0
    for fold in np.unique(folds):
        fitted = folds != fold
        is_scored = ~fitted & np.isin(labels, labels[fitted])
        samples += is_scored.sum()
        if len(np.unique(labels[fitted])) < 2:
            continue  # the only class has probability 1
        # for two classes scikit-learn fits one weight w; ours are +w/2 and -w/2, whose squares sum to half of |w|²
        half = 2 if len(np.unique(labels[fitted])) == 2 else 1
        for i, l2 in enumerate(GRID):
            head = LogisticRegression(C=half / (fitted.sum() * l2), tol=1e-9, solver="newton-cholesky")
            head.fit(x[fitted], labels[fitted])
            columns = np.searchsorted(head.classes_, labels[is_scored])
            losses[i] -= head.predict_log_proba(x[is_scored])[np.arange(is_scored.sum()), columns].sum()
    return losses / max(samples, 1)


PROBLEMS = {
    "seed": st.integers(0, 999), "n": st.integers(12, 50), "channels": st.integers(4, 60),
    "classes": st.integers(2, 4), "groups": st.integers(2, 50), "signal": st.sampled_from([0.0, 0.5, 1.5, 3.0]),
}  # fmt: skip


@settings(deadline=None, max_examples=8)
@given(**PROBLEMS)
def test_converged_losses_are_those_of_scikit_learn(seed, n, channels, classes, groups, signal):
    x, labels = problem(seed, n, channels, classes, signal)
    folds = folds_of(labels, np.random.default_rng(seed).integers(0, groups, n))
    with mock.patch.object(penalty, "TOLERANCE", 1e-8):
        losses = held_out_losses(x, labels, folds)
    np.testing.assert_allclose(losses, reference_losses(x, labels, folds)[: len(losses)], rtol=2e-4, atol=1e-5)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(**PROBLEMS)
def test_the_choice_has_the_lowest_loss_of_scikit_learn(seed, n, channels, classes, groups, signal):
    assume(n >= 30 and groups >= 5)  # with fewer, fits that stop before the last digit may choose among noise
    x, labels = problem(seed, n, channels, classes, signal)
    group = np.random.default_rng(seed).integers(0, groups, n)
    reference = reference_losses(x, labels, folds_of(labels, group))
    tried = len(held_out_losses(x, labels, folds_of(labels, group)))
    choice = GRID.index(chosen_penalty(x, labels, group))
    assert tried == min(len(GRID), choice + 1 + PATIENCE)
    # fits that stop before the last digit may confuse penalties that are nearly as good
    assert reference[choice] <= 1.05 * reference[:tried].min() + 0.01


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), classes=st.integers(1, 5), groups=st.integers(1, 60))
def test_folds_keep_groups_together_and_use_every_fold(seed, n, classes, groups):
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(0, classes, n), rng.integers(0, groups, n)
    folds = folds_of(labels, group)
    assert len(set(zip(group.tolist(), folds.tolist(), strict=True))) == len(np.unique(group))
    assert len(np.unique(folds)) == min(FOLDS, len(np.unique(group)))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), classes=st.integers(1, 5))
def test_folds_of_single_samples_are_stratified(seed, n, classes):
    labels = np.random.default_rng(seed).integers(0, classes, n)
    folds = folds_of(labels, np.arange(n))
    for label in range(classes):
        counts = np.bincount(folds[labels == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


def test_noise_takes_a_strong_penalty_and_signal_a_weak_one():
    noise, labels = problem(0, 60, 200, 3, signal=0.0)
    assert chosen_penalty(noise, labels, np.arange(60)) >= 1
    signal, labels = problem(0, 60, 10, 3, signal=8.0)
    assert chosen_penalty(signal, labels, np.arange(60)) <= 0.01


def test_copies_of_a_patient_do_not_weaken_the_penalty():
    x, labels = problem(3, 25, 60, 3, signal=0.7)
    copies, patients = np.repeat(np.arange(25), 6), np.repeat(np.arange(25), 6)
    rows = x[copies] + np.random.default_rng(0).normal(size=(150, 60)) * 0.1
    by_patient = chosen_penalty(rows, labels[copies], patients)
    by_image = chosen_penalty(rows, labels[copies], np.arange(150))
    assert by_image < by_patient


@pytest.mark.parametrize("labels", [[0] * 6, [0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 5]])
def test_classes_with_too_few_samples_leave_a_penalty(labels):
    x = np.random.default_rng(0).normal(size=(6, 9))
    assert chosen_penalty(x, np.array(labels), np.arange(6)) in GRID


def test_one_class_or_one_group_takes_the_strongest_penalty():
    x, labels = problem(0, 20, 9, 3)
    assert chosen_penalty(x, np.zeros(20, int), np.arange(20)) == GRID[0]
    assert chosen_penalty(x, labels, np.zeros(20, int)) == GRID[0]


def test_samples_without_any_spread_take_the_classes_frequencies():
    labels = np.array([0, 0, 0, 1])
    assert chosen_penalty(np.zeros((4, 9)), labels, np.arange(4)) == GRID[0]
    weight, bias = logistic_regression(np.zeros((4, 9)), labels, 2, 0.01)
    assert not weight.any()
    assert np.isclose(bias[0] - bias[1], np.log(3), atol=1e-5)


def test_the_choice_does_not_depend_on_units_of_memory():
    x, labels = problem(5, 40, 12, 3)
    choices = {
        chosen_penalty(np.asarray(x, dtype, order), labels, np.arange(40))
        for dtype in (np.float32, np.float64) for order in ("C", "F")
    }  # fmt: skip
    assert len(choices) == 1


def learner(pooled, l2):
    dataset = SimpleNamespace(
        name="set", labels=np.arange(len(pooled)) % 3, groups=np.arange(len(pooled)), pool=np.arange(len(pooled)),
        classes=3,
    )  # fmt: skip
    return FrozenLearner(dataset, Features(pooled[:, :, None, None], pooled, np.zeros(0)), Config(l2=l2))


def test_auto_fits_the_head_of_the_chosen_penalty():
    pooled, _ = problem(1, 60, 30, 3)
    pooled = pooled.astype(np.float32)
    labelled = np.arange(5, 45)
    automatic = learner(pooled, "auto")
    automatic.fit(labelled, 0)
    z = (pooled - pooled.mean(0)) / pooled.std(0)
    labels = np.arange(60) % 3
    fixed = learner(pooled, chosen_penalty(z[labelled], labels[labelled], labelled))
    fixed.fit(labelled, 0)
    np.testing.assert_array_equal(automatic.weight, fixed.weight)
    np.testing.assert_array_equal(automatic.bias, fixed.bias)


def test_features_that_are_all_alike_are_refused():
    with pytest.raises(
        BenchError, match="set: the features of all 30 samples in the pool are alike, so nothing can be"
    ):
        learner(np.full((30, 8), 0.7, np.float32), 0.01)


def test_the_flag_takes_numbers_above_zero_and_auto():
    assert resolve({"l2": "0.3"}).l2 == 0.3
    assert resolve({"l2": "auto"}).l2 == "auto"
    for value in ("0", "-1", "many", "nan", "inf"):
        with pytest.raises(BenchError, match=r"^--l2: "):
            resolve({"l2": value})

"""Calibration curves against scikit-learn and statsmodels."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from egal_bench.statistics.calibration import calibration


def test_the_curve_is_that_of_scikit_learn(predictions, rng):
    labels, logits = np.arange(200) % 3, rng.normal(scale=2, size=(2, 200, 3))
    rows = calibration(predictions({"random": logits}, labels, labels))
    p = softmax(logits, axis=2).reshape(400, 3)
    share, mean = calibration_curve(p.argmax(axis=1) == np.tile(labels, 2), p.max(axis=1), n_bins=10)
    np.testing.assert_allclose(rows["accuracy"], share)
    np.testing.assert_allclose(rows["confidence"], mean)
    assert rows["samples"].sum() == 400
    assert rows["seeds"].unique() == [2]


def test_seeds_that_share_the_test_set_narrow_no_interval(predictions, rng):
    """Two equal runs have the interval of one: their test samples are the same."""
    labels, run = np.arange(50) % 3, rng.normal(size=(1, 50, 3))
    alone = calibration(predictions({"random": run}, labels, labels))
    doubled = calibration(predictions({"random": np.concatenate([run, run])}, labels, labels))
    np.testing.assert_allclose(doubled[["low", "high"]], alone[["low", "high"]])
    row = alone.iloc[0]
    expected = proportion_confint(round(row["accuracy"] * row["samples"]), row["samples"], method="wilson")
    assert (row["low"], row["high"]) == pytest.approx(expected)


def test_without_predictions_there_is_no_curve(predictions, rng):
    table = predictions({"random": rng.normal(size=(1, 4, 2))}, np.arange(4) % 2, np.arange(4))
    assert calibration(table.iloc[:0]).empty

"""Sensitivity and specificity against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from egal_bench.statistics.class_rates import class_curves, confusion, confusions


@pytest.fixture
def tables(predictions, rng):
    """Labels [60], predicted [60], and the tables of one run of 3 classes."""
    labels, logits = rng.integers(3, size=60), rng.normal(size=(1, 60, 3))
    rounds = pd.DataFrame(
        [{"dataset": "d", "strategy": "egal", "seed": 0, "round": r, "labels": 10 * r, "masks": r} for r in range(3)]
    )
    return labels, logits[0].argmax(axis=1), predictions({"egal": logits}, labels, np.arange(60)), rounds


def test_confusion_is_scikit_learns(tables):
    labels, predicted, table, _ = tables
    expected = confusion_matrix(labels, predicted)
    np.testing.assert_array_equal(confusion(labels, predicted, 3), expected)
    np.testing.assert_array_equal(confusions(table)["d", "egal", 0, 2], expected)


def test_rates_per_class_are_those_of_one_against_the_rest(tables):
    labels, predicted, table, rounds = tables
    values = class_curves(table, rounds).set_index("metric").value
    for k, ((tn, fp), (fn, tp)) in enumerate(multilabel_confusion_matrix(labels, predicted)):
        assert values[f"sensitivity[{k}]"] == pytest.approx(tp / (tp + fn))
        assert values[f"specificity[{k}]"] == pytest.approx(tn / (tn + fp))


def test_rates_carry_the_labels_and_masks_of_their_round(tables):
    rates = class_curves(*tables[2:])
    assert set(zip(rates["round"], rates.labels, rates.masks, strict=True)) == {(2, 20, 2)}


def test_a_class_without_samples_has_no_sensitivity(predictions, tables):
    labels = np.array([0, 0, 1])
    table = predictions({"egal": np.eye(3)[None, labels]}, labels, labels)
    values = class_curves(table, tables[3]).set_index("metric").value
    assert np.isnan(values["sensitivity[2]"])
    assert values["specificity[2]"] == 1

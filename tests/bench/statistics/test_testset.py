"""The test set's bootstrap: metrics against scikit-learn, variances and coverage by simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from egal_bench.errors import BenchError
from egal_bench.statistics.outcomes import METRICS
from egal_bench.statistics.testset import (
    draw_groups,
    source_intervals,
    uncertainty,
    weighted_auc,
    weighted_metric,
)


def ece_of_scikit(labels, p):
    """Return the ECE from the curve of scikit-learn and the number of samples in each of its 15 bins."""
    hit, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
    share, mean = calibration_curve(hit, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    return counts[counts > 0] @ abs(share - mean) / len(labels)


SCIKIT = {
    "accuracy": lambda labels, p: accuracy_score(labels, p.argmax(axis=1)),
    "balanced_accuracy": lambda labels, p: balanced_accuracy_score(labels, p.argmax(axis=1)),
    "macro_auc": lambda labels, p: roc_auc_score(labels, p, multi_class="ovr"),
    "macro_f1": lambda labels, p: f1_score(labels, p.argmax(axis=1), average="macro"),
    "nll": lambda labels, p: log_loss(labels, p, labels=range(3)),
    "ece": ece_of_scikit,
}


@pytest.fixture
def test_set(rng):
    """Return 60 labels of 3 classes, their 20 groups, and a function that draws logits [S, 60, 3] of some skill."""
    labels, groups = np.arange(60) % 3, rng.permutation(60) % 20
    return labels, groups, lambda seeds, skill: rng.normal(size=(seeds, 60, 3)) + skill * np.eye(3)[labels]


@pytest.mark.parametrize("metric", METRICS)
def test_a_weighted_metric_is_scikit_learns_on_the_resample(metric, test_set, rng):
    labels, groups, logits = test_set
    run = logits(1, 1)[0].round(1)  # ties between scores
    draws = draw_groups(groups, rng, draws=20)
    values = weighted_metric(metric, run, labels, draws.weights)
    p = np.exp(run) / np.exp(run).sum(axis=1, keepdims=True)
    for weights, value in zip(draws.weights.T, values, strict=True):
        taken = np.repeat(np.arange(60), weights.astype(int))
        assert value == pytest.approx(SCIKIT[metric](labels[taken], p[taken]))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=20))
def test_weighted_auc_is_the_share_of_pairs_won(samples):
    score, positive, weight = map(np.array, zip(*samples, strict=True))
    pairs = [
        (weight[i] * weight[j], (score[i] > score[j]) + (score[i] == score[j]) / 2)
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive)
    ]
    total = sum(w for w, _ in pairs)
    expected = sum(w * won for w, won in pairs) / total if total else np.nan
    values = weighted_auc(score.astype(float), positive, np.tile(weight[:, None], 130).astype(np.float32))
    np.testing.assert_allclose(values, np.full(130, expected))


def test_a_class_that_a_draw_lacks_does_not_count_in_the_mean():
    labels, logits = np.array([0, 0, 1]), np.array([[1.0, 0], [0, 1], [0, 1]])
    weights = np.array([[1, 1, 0], [0, 0, 1]], np.float32).T
    assert weighted_metric("balanced_accuracy", logits, labels, weights).tolist() == [0.5, 1]
    assert np.isnan(weighted_metric("macro_auc", logits, labels, weights)).all()


def test_groups_are_drawn_whole_and_as_many_as_there_are(rng):
    groups = np.array(["b", "a", "b", "c"])
    draws = draw_groups(groups, rng, draws=500)
    assert draws.groups == 3
    assert (draws.weights[0] == draws.weights[2]).all()
    assert (draws.weights[[0, 1, 3]].sum(axis=0) == 3).all()
    assert draws.weights.mean() == pytest.approx(1, abs=0.1)


def test_identical_strategies_differ_by_nothing_under_every_draw(predictions, test_set, rng):
    labels, groups, logits = test_set
    runs = logits(4, 1)
    rows = uncertainty(predictions({"random": runs, "egal": runs}, labels, groups), rng=rng, draws=50)
    row = rows.set_index("strategy").loc["egal"]
    ends = [f"difference_{source}_{end}" for source in ("seeds", "test", "both") for end in ("low", "high")]
    assert (row[["difference", *ends]] == 0).all()
    assert row.value_test_low < row.value_test_high


def test_values_and_differences_are_means_over_paired_seeds(predictions, test_set, rng):
    labels, groups, logits = test_set
    runs = {"random": logits(4, 1), "egal": logits(3, 2)}
    row = uncertainty(predictions(runs, labels, groups), rng=rng, draws=50).set_index("strategy").loc["egal"]
    accuracy = {name: (run.argmax(axis=2) == labels).mean(axis=1) for name, run in runs.items()}
    assert (row.seeds, row.groups, row.samples) == (3, 20, 60)
    assert row.value == pytest.approx(accuracy["egal"].mean())
    assert row.difference == pytest.approx((accuracy["egal"] - accuracy["random"][:3]).mean())


def test_intervals_of_the_seeds_are_students(predictions, test_set, rng):
    from scipy import stats

    labels, groups, logits = test_set
    runs = {"random": logits(5, 1), "egal": logits(5, 2)}
    row = uncertainty(predictions(runs, labels, groups), rng=rng, draws=50).set_index("strategy").loc["egal"]
    accuracy = {name: (run.argmax(axis=2) == labels).mean(axis=1) for name, run in runs.items()}
    expected = stats.ttest_rel(accuracy["egal"], accuracy["random"]).confidence_interval()
    assert [row.difference_seeds_low, row.difference_seeds_high] == pytest.approx(list(expected))


def test_samples_of_one_patient_widen_the_interval(predictions, test_set, rng):
    """Ten groups of six samples that are all right or all wrong know as much as ten samples."""
    labels = np.arange(60) % 3
    right = (np.arange(60) // 6 % 2 == 0)[:, None]
    runs = {"random": np.where(right, np.eye(3)[labels], np.eye(3)[(labels + 1) % 3])[None]}
    grouped = uncertainty(predictions(runs, labels, np.arange(60) // 6), rng=rng).iloc[0]
    alone = uncertainty(predictions(runs, labels, np.arange(60)), rng=rng).iloc[0]
    widths = [row.value_test_high - row.value_test_low for row in (grouped, alone)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(6), rel=0.2)


def test_order_of_rows_changes_nothing(predictions, test_set):
    labels, groups, logits = test_set
    table = predictions({"random": logits(3, 1), "egal": logits(3, 1)}, labels, groups)
    rows = [
        uncertainty(order, "macro_auc", rng=np.random.default_rng(0), draws=30).sort_values(
            "strategy", ignore_index=True
        )
        for order in (table, table.sample(frac=1, random_state=8))
    ]
    pd.testing.assert_frame_equal(*rows)


def test_swapping_strategy_and_baseline_mirrors_the_interval(predictions, test_set):
    labels, groups, logits = test_set
    table = predictions({"a": logits(3, 1), "b": logits(3, 2)}, labels, groups)
    one, other = (
        uncertainty(table, baseline=base, rng=np.random.default_rng(0)).set_index("strategy").loc[name]
        for base, name in (("a", "b"), ("b", "a"))
    )
    for source in ("seeds", "test", "both"):
        assert one[f"difference_{source}_low"] == pytest.approx(-other[f"difference_{source}_high"])


@pytest.mark.parametrize(
    ("seeds", "groups", "undefined"),
    [(1, 20, {"seeds", "both"}), (3, 1, {"test", "both"}), (1, 1, {"seeds", "test", "both"})],
    ids=["one seed", "one group", "neither"],
)
def test_a_source_that_cannot_vary_has_no_interval(predictions, test_set, rng, recwarn, seeds, groups, undefined):
    labels, group, logits = test_set
    table = predictions({"random": logits(seeds, 1), "egal": logits(seeds, 1)}, labels, group % groups)
    row = uncertainty(table, rng=rng, draws=20).set_index("strategy").loc["egal"]
    for source in ("seeds", "test", "both"):
        assert np.isnan(row[f"difference_{source}_low"]) == (source in undefined), source
    assert not recwarn.list


def test_without_the_baseline_there_is_no_difference(predictions, test_set, rng):
    labels, groups, logits = test_set
    row = uncertainty(predictions({"egal": logits(3, 1)}, labels, groups), rng=rng, draws=20).iloc[0]
    assert np.isnan(row.difference)
    assert row.value_both_low < row.value < row.value_both_high


def test_runs_with_different_test_sets_are_refused_by_name(predictions, test_set, rng):
    labels, groups, logits = test_set
    table = predictions({"random": logits(2, 1), "egal": logits(2, 1)}, labels, groups)
    other = table[~((table.strategy == "random") & (table.seed == 1) & (table.key == "k00000"))]
    with pytest.raises(BenchError, match="predictions of random, seed 1: another test set"):
        uncertainty(other, rng=rng)
    with pytest.raises(BenchError, match="several rounds"):
        uncertainty(pd.concat([table, table.assign(round=1)]), rng=rng)


@pytest.mark.parametrize(
    ("seeds", "groups", "spread"),
    [(5, 40, (0.33, 1, 1)), (10, 60, (0.3, 0.3, 3)), (5, 30, (0.1, 2, 1))],
)
def test_crossed_interval_covers_as_it_promises(seeds, groups, spread, rng):
    """2000 studies of a mean with normal effects of the seed, the patient and both together."""
    of_seed, of_group, of_both = spread
    draws = rng.multinomial(groups, np.full(groups, 1 / groups), size=200)
    weights, covered = np.concatenate([np.ones((1, groups)), draws]), 0
    for _ in range(2000):
        values = of_seed * rng.normal(size=(seeds, 1)) + of_group * rng.normal(size=groups)
        values = values + of_both * rng.normal(size=(seeds, groups))
        interval = source_intervals(values @ weights.T / groups, groups)
        covered += interval["_both_low"] <= 0 <= interval["_both_high"]
    assert 0.93 <= covered / 2000 <= 0.97

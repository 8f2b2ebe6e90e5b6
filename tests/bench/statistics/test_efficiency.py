"""Label efficiency: crossings by hand, medians against numpy and the textbook's estimator."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egal_bench.statistics.efficiency import (
    censored_interval,
    censored_median,
    efficiency,
    first_reach,
    needs,
    survival,
)
from egal_bench.statistics.outcomes import curves as from_rounds

times = st.lists(st.integers(1, 50).map(float), min_size=1, max_size=12).map(np.array)


@pytest.mark.parametrize(
    ("values", "position"),
    [([0.1, 0.3, 0.5], 1.5), ([0.4, 0.1, 0.9], 0), ([0.1, 0.4], 1), ([0.1, 0.3], np.nan), ([0.1, np.nan, 0.6], 2)],
    ids=["between rounds", "at once", "exactly at a round", "never", "after a gap"],
)
def test_first_reach_of_four_tenths(values, position):
    assert first_reach(np.array(values), 0.4) == pytest.approx(position, nan_ok=True)


def test_needs_are_interpolated_at_the_baselines_final_value(curves):
    """random ends at .5 with 40 labels and 6 masks; egal is at .5 halfway between 10 and 20 labels, 0 and 3 masks."""
    rows = needs(curves({"random": [[0.1, 0.2, 0.5]], "egal": [[0.4, 0.6, 0.7]]})).set_index("strategy")
    row = rows.loc["egal"]
    assert (row.target, row.reached, row.labels, row.masks) == (0.5, True, pytest.approx(15), pytest.approx(1.5))
    assert (row.labels_ratio, row.masks_ratio) == (pytest.approx(15 / 40), pytest.approx(1.5 / 6))
    assert rows.loc["random", ["labels", "masks", "labels_ratio"]].tolist() == [40, 6, 1]


def test_the_target_is_that_of_the_same_seed(curves):
    table = curves({"random": [[0.1, 0.3], [0.4, 0.8]], "egal": [[0.3, 0.4], [0.4, 0.6]]})
    rows = needs(table).set_index(["strategy", "seed"]).loc["egal"]
    assert rows.target.to_dict() == {0: 0.3, 1: 0.8}
    assert rows.reached.to_dict() == {0: True, 1: False}


def test_a_noisy_baseline_is_measured_by_its_own_first_reach(curves):
    rows = needs(curves({"random": [[0.1, 0.6, 0.5]], "egal": [[0.1, 0.5, 0.5]]})).set_index("strategy")
    assert rows.loc["random", "labels"] == pytest.approx(18)
    assert rows.loc["egal", "labels_ratio"] == pytest.approx(20 / 18)


def test_a_run_that_never_reaches_is_censored_at_its_budget(curves):
    row = needs(curves({"random": [[0.1, 0.5]], "egal": [[0.1, 0.4]]})).set_index("strategy").loc["egal"]
    assert (row.reached, row.labels, row.masks) == (False, 20, 3)


def test_lower_values_are_reached_where_lower_is_better(rounds):
    table = from_rounds(rounds({"random": [[0.1, 0.2, 0.5]], "egal": [[0.4, 0.6, 0.7]]}), ["accuracy", "nll"])
    rows = needs(table).set_index(["strategy", "metric"])
    assert rows.labels["egal", "nll"] == pytest.approx(rows.labels["egal", "accuracy"])


def test_no_masks_at_all_have_no_ratio(curves, recwarn):
    table = curves({"random": [[0.1, 0.5]] * 2, "egal": [[0.4, 0.6]] * 2}).assign(masks=0)
    row = efficiency(needs(table)).set_index("strategy").loc["egal"]
    assert (row.masks, row.labels_ratio) == (0, pytest.approx(0.75))
    assert np.isnan(row.masks_ratio)
    assert not recwarn.list


def test_medians_know_the_censored(curves):
    """egal reaches after 10, 15 and never: its median is 15; with two of three censored it lies beyond the budget."""
    base = [[0.1, 0.5]] * 3
    one = efficiency(needs(curves({"random": base, "egal": [[0.5, 0.6], [0.4, 0.6], [0.1, 0.2]]})))
    two = efficiency(needs(curves({"random": base, "egal": [[0.5, 0.6], [0.4, 0.4], [0.1, 0.2]]})))
    row = one.set_index("strategy").loc["egal"]
    assert (row.seeds, row.reached, row.labels, row.labels_ratio) == (3, 2, pytest.approx(15), pytest.approx(0.75))
    assert two.set_index("strategy").loc["egal", ["reached", "labels"]].tolist() == [1, np.inf]


@given(times)
def test_median_without_censoring_is_the_ordinary_median(values):
    assert censored_median(values, np.ones(len(values), bool)) == pytest.approx(np.median(values))


@given(times, st.randoms(use_true_random=False))
def test_median_is_where_the_product_of_survivals_halves(values, random):
    """Kaplan and Meier's product, written out time by time."""
    reached = np.array([random.random() < 0.7 for _ in values])
    survival, at_half = 1.0, None
    for time in np.unique(values):
        survival *= 1 - np.sum((values == time) & reached) / np.sum(values >= time)
        if survival <= 0.5 + 1e-9 and at_half is None:
            at_half = time
        if survival < 0.5 - 1e-9:
            break
    expected = (at_half + time) / 2 if survival < 0.5 - 1e-9 else np.inf
    assert censored_median(values, reached) == pytest.approx(expected)


# Weeks in remission of 21 leukaemia patients under 6-MP, and under placebo: Freireich et al. 1963
WEEKS = np.array([6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35.0])
RELAPSED = np.arange(21) < 9
PLACEBO = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23.0])


def test_survival_and_its_error_are_the_published_ones():
    curve = survival(WEEKS, RELAPSED)
    assert curve.surv_times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    np.testing.assert_allclose(curve.surv_prob, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4)
    np.testing.assert_allclose(curve.surv_prob_se, [0.0764, 0.0869, 0.0963, 0.1068, 0.1141, 0.1282, 0.1346], atol=6e-5)


def test_median_and_interval_of_the_survival_are_the_published_ones():
    """As SAS and R print them on the log-log scale: 23 (13, unbounded) weeks, and 8 (4, 11) weeks."""
    assert (censored_median(WEEKS, RELAPSED), *censored_interval(WEEKS, RELAPSED)) == (23, 13, np.inf)
    everyone = np.ones(21, bool)
    assert (censored_median(PLACEBO, everyone), *censored_interval(PLACEBO, everyone)) == (8, 4, 11)


@pytest.mark.parametrize(
    ("values", "reached"), [([], []), ([5.0], [True]), ([5.0, 6], [False, False]), ([5.0, 5], [True, True])]
)
def test_a_median_without_an_error_has_no_interval(values, reached, recwarn):
    assert np.isnan(censored_interval(np.array(values), np.array(reached, bool))).all()
    assert not recwarn.list


def test_median_of_nothing_is_nan():
    assert np.isnan(censored_median(np.array([np.nan]), np.array([True])))


def test_order_of_rows_changes_nothing(curves, rng):
    table = curves({name: rng.uniform(size=(5, 4)) for name in ("random", "a", "b")})
    pd.testing.assert_frame_equal(efficiency(needs(table)), efficiency(needs(table.sample(frac=1, random_state=2))))


def test_zero_rounds_need_the_initial_set_or_are_censored(curves):
    rows = needs(curves({"random": [[0.5], [0.5]], "egal": [[0.5], [0.4]]})).set_index(["strategy", "seed"])
    assert rows.loc["egal"].reached.to_dict() == {0: True, 1: False}
    assert rows.labels.tolist() == [10] * 4


def test_seeds_without_a_complete_baseline_have_no_row(curves):
    table = curves({"random": [[0.1, 0.2, 0.3], [0.1, 0.2]], "egal": [[0.1, 0.2, 0.3]] * 3})
    assert set(needs(table).seed) == {0}
    assert needs(table, "badge").empty
    assert efficiency(needs(table, "badge")).empty

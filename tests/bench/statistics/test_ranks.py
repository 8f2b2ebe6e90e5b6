"""Ranks against the example of Demšar 2006 (tables 5 and 6, section 3.2.2) and against scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from egal_bench.statistics.ranks import average_ranks, cliques, dataset_scores, rank_stability

# AUC of C4.5, with m tuned, with cf tuned, with both tuned, on 14 data sets. In the last row but one the paper prints
# 0.975 twice and ranks the first of the two higher, so its third figure has a digit more here.
DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""


@pytest.fixture
def demsar():
    return pd.DataFrame(
        [map(float, row.split()) for row in DEMSAR.strip().splitlines()], columns=["C4.5", "+m", "+cf", "+m+cf"]
    )


def test_ranks_of_the_published_example(demsar):
    assert average_ranks(demsar).ranks.round(3).to_dict() == {"C4.5": 3.143, "+m": 2.0, "+cf": 2.893, "+m+cf": 1.964}


def test_friedman_of_the_published_example_corrected_for_ties(demsar):
    """The published 9.28 is without the correction, which divides by 1 − Σ(t³ − t) / (N(k³ − k)), t tied together."""
    ties = sum((t**3 - t) for row in demsar.to_numpy() for t in np.unique(row, return_counts=True)[1])
    test = average_ranks(demsar)
    assert test.statistic * (1 - ties / (14 * (4**3 - 4))) == pytest.approx(9.28, abs=0.005)
    assert test.p == pytest.approx(stats.chi2.sf(test.statistic, 3))


@pytest.mark.parametrize(("alpha", "published"), [(0.05, 1.25), (0.1, 1.12)])
def test_critical_difference_of_the_published_example(demsar, alpha, published):
    assert average_ranks(demsar, alpha=alpha).critical_difference == pytest.approx(published, abs=0.005)


def test_nemenyi_agrees_with_the_critical_difference(demsar):
    for alpha in (0.05, 0.1):
        test = average_ranks(demsar, alpha=alpha)
        apart = np.abs(np.subtract.outer(test.ranks.to_numpy(), test.ranks.to_numpy())) >= test.critical_difference
        np.testing.assert_array_equal(test.nemenyi.to_numpy() <= alpha, apart)
    assert apart.sum() == 4  # at 10 % the untuned C4.5 differs from both with m tuned


def test_cliques_are_the_bars_of_the_published_diagram(demsar):
    assert cliques(average_ranks(demsar, alpha=0.1)) == [("+m+cf", "+m", "+cf"), ("+cf", "C4.5")]
    assert cliques(average_ranks(demsar)) == [("+m+cf", "+m", "+cf", "C4.5")]


def test_order_of_data_sets_changes_nothing(demsar):
    one, other = average_ranks(demsar), average_ranks(demsar.sample(frac=1, random_state=0))
    assert (one.statistic, one.p) == pytest.approx((other.statistic, other.p))
    pd.testing.assert_frame_equal(one.nemenyi, other.nemenyi)


def test_a_strategy_that_a_data_set_lacks_is_left_out_by_name(demsar):
    demsar.loc[3, "+cf"] = np.nan
    test = average_ranks(demsar)
    assert test.left_out == ("+cf",)
    assert list(test.ranks.index) == ["C4.5", "+m", "+m+cf"]


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [
        (1, 4, "1 data set: rank tests need at least 3"),
        (2, 4, "2 data sets: rank tests need at least 3"),
        (14, 2, "2 strategies on every data set: rank tests need at least 3"),
        (14, 1, "1 strategy on every data set: rank tests need at least 3"),
    ],
)
def test_too_little_to_rank_says_what_is_missing(demsar, recwarn, rows, columns, reason):
    test = average_ranks(demsar.iloc[:rows, :columns])
    assert test.reason == reason
    assert np.isnan([test.statistic, test.p, test.critical_difference]).all()
    assert cliques(test) == []
    assert not recwarn.list


def test_ties_on_every_data_set_are_said_to_be_ties(recwarn):
    test = average_ranks(pd.DataFrame(0.5, index=range(4), columns=list("abc")))
    assert (test.reason, test.ranks.tolist()) == ("all strategies are tied on every data set", [2, 2, 2])
    assert not recwarn.list


def test_dataset_scores_turn_where_lower_is_better(outcomes):
    values = {"a": [0.1, 0.3], "b": [0.4, 0.6]}
    table = pd.concat([outcomes(values, "x", "nll"), outcomes({"a": [0.5]}, "y", "nll")])
    expected = pd.DataFrame({"a": [-0.2, -0.5], "b": [-0.5, np.nan]}, index=["x", "y"])
    pd.testing.assert_frame_equal(dataset_scores(table)[["a", "b"]], expected, check_names=False)


def test_a_ranking_without_noise_is_stable(outcomes, rng):
    stability = rank_stability(outcomes({"a": [0.1, 0.2], "b": [0.5, 0.6], "c": [0.3, 0.4]}), rng, draws=50)
    assert stability.ranks.to_dict() == {"a": 3, "b": 1, "c": 2}
    assert (stability.tau, stability.tau_low, stability.tau_high) == (1, 1, 1)
    assert stability.shares.loc["b"].tolist() == [1, 0, 0]


def test_strategies_are_resampled_by_the_same_seeds(outcomes, rng):
    """Seeds differ by much more than strategies: independent draws would mix the places."""
    seeds = np.linspace(0, 1, 6)
    stability = rank_stability(outcomes({"a": seeds, "b": seeds + 0.01}), rng)
    assert stability.shares.loc["b", 1] == 1


def test_shares_are_the_chance_of_the_place_under_the_bootstrap(outcomes, rng):
    """b beats a in 1 of 3 seeds by as much as it loses in another: of 27 resamples it leads in 10 and ties in 7."""
    stability = rank_stability(outcomes({"a": [0.5, 0.5, 0.5], "b": [0.6, 0.5, 0.4]}), rng, draws=2000)
    assert stability.shares.loc["b", 1] == pytest.approx(17 / 27, abs=0.035)
    assert stability.shares.loc["b", 2] == pytest.approx(10 / 27, abs=0.035)


def test_ranks_of_several_data_sets_are_averaged(outcomes, rng):
    table = pd.concat(
        [outcomes({"a": [0.1, 0.2], "b": [0.3, 0.4]}, name) for name in "xyz"]
        + [outcomes({"a": [0.5, 0.6], "b": [0.3, 0.4], "c": [0.1, 0.1]}, "w")]
    )
    assert rank_stability(table, rng, draws=20).ranks.to_dict() == {"a": 7 / 4, "b": 5 / 4}


def test_order_of_rows_changes_no_stability(outcomes, rng):
    table = outcomes({name: rng.uniform(size=6) for name in "abc"})
    one = rank_stability(table, np.random.default_rng(0), draws=100)
    other = rank_stability(table.sample(frac=1, random_state=5), np.random.default_rng(0), draws=100)
    assert one.tau == other.tau
    pd.testing.assert_frame_equal(one.shares, other.shares.loc[one.shares.index])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"a": [0.1, 0.2]}, "a ranking needs two strategies on every data set"),
        ({"a": [0.1], "b": [0.2]}, "a bootstrap needs two seeds of every strategy"),
        ({"a": [0.1, np.nan], "b": [np.nan, 0.2]}, "a bootstrap needs two seeds of every strategy"),
        ({"a": [0.5, 0.5], "b": [0.5, 0.5]}, "all strategies are tied"),
    ],
    ids=["one strategy", "one seed", "no common seed", "constant metric"],
)
def test_stability_that_cannot_be_computed_says_why(outcomes, rng, recwarn, values, reason):
    stability = rank_stability(outcomes(values), rng, draws=20)
    assert stability.reason == reason
    assert np.isnan([stability.tau, stability.tau_low, stability.tau_high]).all()
    assert not recwarn.list

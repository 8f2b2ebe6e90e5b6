"""Paired differences against scipy and by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from egal_bench.statistics.paired import differences, improvement

values = st.lists(st.integers(0, 20).map(lambda k: k / 20), min_size=1, max_size=8)


@given(values, values)
def test_improvement_is_mann_whitneys_statistic_as_a_share(x, y):
    expected = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert improvement(np.array(x), np.array(y)) == pytest.approx(expected)


@given(values, values)
def test_improvement_mirrors_when_its_sides_are_swapped(x, y):
    assert improvement(np.array(x), np.array(y)) + improvement(np.array(y), np.array(x)) == pytest.approx(1)


def test_differences_pair_by_seed(outcomes):
    """Seeds differ by .3, strategies by .01 to .03 within a seed: only pairing shows a small, steady gain."""
    row = differences(outcomes({"random": [0.2, 0.5, 0.8], "egal": [0.21, 0.52, 0.83]})).iloc[0]
    assert (row.pairs, row.won, row.tied) == (3, 3, 0)
    assert row.difference == pytest.approx(0.02)
    assert row.sd == pytest.approx(0.01)
    assert row.effect == pytest.approx(2)
    interval = stats.ttest_rel([0.21, 0.52, 0.83], [0.2, 0.5, 0.8]).confidence_interval()
    assert [row.low, row.high] == pytest.approx(list(interval))
    assert row.improvement == pytest.approx(6 / 9)


def test_seeds_that_only_one_side_has_are_left_out(outcomes):
    row = differences(outcomes({"random": [0.2, np.nan, 0.4, 0.4], "egal": [np.nan, 0.9, 0.5, 0.4]})).iloc[0]
    assert (row.pairs, row.won, row.tied, row.difference) == (2, 1, 1, pytest.approx(0.05))


def test_swapping_strategy_and_baseline_mirrors_the_row(outcomes, rng):
    table = outcomes({"a": rng.uniform(size=6), "b": rng.uniform(size=6)})
    one, other = differences(table, "a").iloc[0], differences(table, "b").iloc[0]
    assert [one.difference, one.low, one.effect] == pytest.approx([-other.difference, -other.high, -other.effect])
    assert one.won == other.pairs - other.won - other.tied
    assert one.improvement == pytest.approx(1 - other.improvement)


def test_where_lower_is_better_a_lower_value_wins(outcomes):
    row = differences(outcomes({"random": [1.0, 1.0], "egal": [0.5, 0.8]}, metric="nll")).iloc[0]
    assert (row.won, row.improvement, row.difference) == (2, 1, pytest.approx(-0.35))


def test_order_of_rows_changes_nothing(outcomes, rng):
    table = outcomes({name: rng.uniform(size=5) for name in ("random", "a", "b")})
    expected = differences(table).sort_values("strategy", ignore_index=True)
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(differences(shuffled).sort_values("strategy", ignore_index=True), expected)


def test_every_budget_has_its_own_difference(curves):
    rows = differences(curves({"random": [[0.1, 0.2], [0.1, 0.2]], "egal": [[0.2, 0.5], [0.2, 0.5]]}))
    assert dict(zip(rows.labels, rows.difference.round(9), strict=True)) == {10: 0.1, 20: 0.3}


@pytest.mark.parametrize(
    ("table", "pairs", "undefined"),
    [
        ({"random": [0.1], "egal": [0.2]}, 1, {"low", "high", "sd", "effect"}),
        ({"random": [0.5] * 3, "egal": [0.5] * 3}, 3, {"effect"}),
        ({"random": [0.1, np.nan], "egal": [np.nan, 0.2]}, 0, {"difference", "low", "high", "sd", "effect", "won"}),
        ({"entropy": [0.1, 0.3], "egal": [0.2, 0.2]}, 0, {"difference", "low", "high", "sd", "effect", "won"}),
    ],
    ids=["one seed", "constant metric", "no common seed", "no baseline"],
)
def test_what_is_undefined_is_nan(outcomes, table, pairs, undefined):
    row = differences(outcomes(table)).set_index("strategy").loc["egal"]
    assert row.pairs == pairs
    assert set(row.index[row.isna()]) - {"tied", "improvement"} == undefined


def test_the_baseline_alone_has_no_difference(outcomes):
    rows = differences(outcomes({"random": [0.1, 0.2]}))
    assert rows.empty
    assert "difference" in rows.columns

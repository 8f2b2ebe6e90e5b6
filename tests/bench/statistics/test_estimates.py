"""Estimates and their intervals: against scipy, and the coverage that the module states."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from egal_bench.statistics.estimates import estimates, iqm, iqm_interval, mean_interval, pooled_iqm

STUDIES = 2000
DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, size=shape),
    "ties": lambda rng, shape: rng.normal(size=shape).round(),
}
samples = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0, 1))


@pytest.mark.parametrize("seeds", [5, 7, 10])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mean_interval_covers_as_it_promises(name, seeds, rng):
    low, high = mean_interval(DISTRIBUTIONS[name](rng, (STUDIES, seeds)))
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_iqm_interval_covers_as_it_promises(name, seeds, rng):
    """The distributions are symmetric, so the IQM of any number of seeds estimates 0."""
    low, high = iqm_interval([DISTRIBUTIONS[name](rng, (STUDIES, seeds))], rng, draws=400)
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


def test_stratified_iqm_interval_covers_as_it_promises(rng):
    strata = [rng.normal(level, 1, size=(STUDIES, 5)) for level in (-1, 0, 1)]
    low, high = iqm_interval(strata, rng, draws=300)
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


def test_a_difference_between_strata_does_not_widen_the_interval(rng):
    strata = [rng.normal(level, 0.01, size=20) for level in (0, 1, 2)]
    low, high = iqm_interval(strata, rng)
    mixed_low, mixed_high = iqm_interval([np.concatenate(strata)], rng)
    assert high - low < (mixed_high - mixed_low) / 3


@given(samples)
def test_mean_interval_is_scipys(values):
    low, high = mean_interval(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's words for a sample that is constant
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    if np.ptp(values) > 1e-9:
        np.testing.assert_allclose([low, high], expected, atol=1e-9)


def test_iqm_of_eight_values_is_the_mean_of_the_middle_four():
    assert iqm(np.array([8, 1, 2, 100, 3, 4, 5, -50.0])) == pytest.approx((2 + 3 + 4 + 5) / 4)


@settings(max_examples=20, deadline=None)
@given(samples, st.randoms(use_true_random=False))
def test_estimates_do_not_depend_on_the_order_of_rows(values, random):
    rows = [
        {"dataset": "d", "strategy": "s", "seed": i, "metric": "accuracy", "outcome": "final", "value": value}
        for i, value in enumerate(values)
    ]
    shuffled = random.sample(rows, len(rows))
    tables = [estimates(pd.DataFrame(order), np.random.default_rng(0), draws=50) for order in (rows, shuffled)]
    pd.testing.assert_frame_equal(*tables)


def test_cells_of_a_table_are_estimated_one_by_one(curves, rng):
    table = curves({"a": rng.uniform(size=(6, 3)), "b": rng.uniform(size=(4, 3))})
    rows = estimates(table, rng)
    assert len(rows) == 6
    for row in rows.itertuples():
        values = table[(table.strategy == row.strategy) & (table.labels == row.labels)].value
        assert row.seeds == len(values)
        np.testing.assert_allclose([row.mean, row.sd], [values.mean(), values.std()])
        assert row.iqm == pytest.approx(stats.trim_mean(values, 0.25))
        assert row.iqm_low < row.iqm < row.iqm_high
        assert row.mean_low < row.mean < row.mean_high


def test_one_seed_has_estimates_but_no_interval(outcomes, rng):
    row = estimates(outcomes({"a": [0.5]}), rng).iloc[0]
    assert (row.seeds, row["mean"], row.iqm) == (1, 0.5, 0.5)
    assert row[["sd", "mean_low", "mean_high", "iqm_low", "iqm_high"]].isna().all()


def test_a_constant_metric_has_an_interval_of_no_width(outcomes, rng):
    row = estimates(outcomes({"a": [0.5] * 5}), rng).iloc[0]
    assert (row.sd, row.mean_low, row.mean_high, row.iqm_low, row.iqm_high) == (0, 0.5, 0.5, 0.5, 0.5)


def test_missing_values_do_not_count(outcomes, rng):
    table = outcomes({"a": [0.1, 0.2, 0.3]})
    table.loc[table.seed == 1, "value"] = np.nan
    row = estimates(table, rng).iloc[0]
    assert (row.seeds, row["mean"]) == (2, pytest.approx(0.2))


def test_pooled_iqm_counts_data_sets_and_their_runs(outcomes, rng):
    first, second = rng.uniform(size=5), rng.uniform(size=6)
    table = pd.concat([outcomes({"a": first, "b": first}, "d"), outcomes({"a": second}, "e")])
    rows = pooled_iqm(table, rng).set_index("strategy")
    assert rows.loc["a", ["datasets", "seeds"]].tolist() == [2, 11]
    assert rows.loc["a", "iqm"] == pytest.approx(stats.trim_mean(np.concatenate([first, second]), 0.25))
    assert rows.loc["b", ["datasets", "seeds"]].tolist() == [1, 5]
    assert (rows.iqm_low < rows.iqm).all()

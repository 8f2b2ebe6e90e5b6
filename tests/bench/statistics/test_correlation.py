"""Rank correlations against scipy, and their mean on Fisher's scale."""

import numpy as np
import pytest
from scipy import stats

from egal_bench.statistics.correlation import mean_correlation, rank_correlation


def test_rank_correlation_is_pearsons_of_the_ranks(rng):
    x, y = rng.normal(size=30).round(1), rng.normal(size=30)
    y[3] = x[7] = np.nan
    known = np.isfinite(x) & np.isfinite(y)
    expected = stats.pearsonr(stats.rankdata(x[known]), stats.rankdata(y[known])).statistic
    assert rank_correlation(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([np.nan] * 4, [1, 2, 3, 4]), ([], [])])
def test_a_correlation_of_what_does_not_vary_is_nan(x, y, recwarn):
    assert np.isnan(rank_correlation(np.array(x, float), np.array(y, float)))
    assert not recwarn.list


def test_the_interval_is_students_on_fishers_scale():
    values = np.array([0.2, 0.5, np.nan, 0.4])
    z = np.arctanh([0.2, 0.5, 0.4])
    low, high = stats.t.interval(0.95, 2, z.mean(), stats.sem(z))
    assert mean_correlation(values) == pytest.approx((np.tanh(z.mean()), np.tanh(low), np.tanh(high)))


def test_extreme_and_missing_correlations():
    assert mean_correlation(np.ones(3)) == pytest.approx((1, 1, 1))
    assert mean_correlation(np.array([0.5]))[0] == pytest.approx(0.5)
    assert np.isnan(mean_correlation(np.array([0.5]))[1:]).all()
    assert np.isnan(mean_correlation(np.array([np.nan]))).all()


def test_intervals_of_mean_correlations_cover_as_they_promise(rng):
    """Eight seeds of 200 pairs each, whose rank correlation is 6/π·asin(ρ/2)."""
    truth, covered = 6 / np.pi * np.arcsin(0.6 / 2), 0
    for _ in range(400):
        x = rng.normal(size=(8, 200))
        y = 0.6 * x + 0.8 * rng.normal(size=x.shape)
        _, low, high = mean_correlation(np.array([rank_correlation(*pair) for pair in zip(x, y, strict=True)]))
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98

"""Paired tests against scipy and statsmodels, enumeration by hand, and their error rates."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from egal_bench.errors import BenchError
from egal_bench.statistics.significance import EXACT_SEEDS, TESTS, equivalence_p, holm, paired_p

points = st.lists(st.integers(-4, 4).map(lambda k: k / 100), min_size=2, max_size=8).map(np.array)


def p_of(d: np.ndarray, test: str = "sign-flip", rng=None) -> float:
    return paired_p(d[:, None], test, rng)[0]


@given(points)
def test_sign_flip_is_the_share_of_sign_changes_as_extreme(d):
    means = np.array([np.dot(signs, d) for signs in product([1, -1], repeat=len(d))])
    assert p_of(d) == pytest.approx(np.mean(np.abs(means) >= abs(d.sum()) - 1e-12))


@given(st.permutations([1.5, -2, 3, 4.25, -5, 6.5]))
def test_wilcoxon_is_scipys_exact_test_without_ties(d):
    assert p_of(np.array(d), "wilcoxon") == pytest.approx(stats.wilcoxon(d, mode="exact").pvalue)


@settings(max_examples=25, deadline=None)
@given(points.filter(lambda d: np.any(d != 0)))
def test_wilcoxon_with_ties_is_scipys_permutation_of_ranks(d):
    exact = stats.PermutationMethod(n_resamples=np.inf)
    expected = stats.wilcoxon(np.round(d * 100), zero_method="pratt", method=exact).pvalue
    assert p_of(d, "wilcoxon") == pytest.approx(expected)


def test_t_is_scipys_paired_test(rng):
    d = rng.normal(0.3, 1, size=(7, 4))
    np.testing.assert_allclose(paired_p(d, "t"), stats.ttest_rel(d, np.zeros_like(d)).pvalue)


@pytest.mark.parametrize("test", TESTS)
@given(d=points)
def test_swapping_the_sides_changes_no_p(test, d):
    assert p_of(d, test) == pytest.approx(p_of(-d, test))


@pytest.mark.parametrize("test", TESTS)
@given(d=points, random=st.randoms(use_true_random=False))
def test_the_order_of_seeds_changes_no_p(test, d, random):
    assert p_of(np.array(random.sample(list(d), len(d))), test) == pytest.approx(p_of(d, test))


@pytest.mark.parametrize("test", TESTS)
def test_columns_with_missing_seeds_are_tested_on_their_own(test, rng):
    d = rng.normal(size=(8, 3))
    d[[0, 5], 1] = np.nan
    expected = [p_of(column[np.isfinite(column)], test) for column in d.T]
    np.testing.assert_allclose(paired_p(d, test), expected)


@pytest.mark.parametrize("test", TESTS)
def test_fewer_than_two_seeds_have_no_p(test):
    assert np.isnan(paired_p(np.array([[0.1, np.nan]]), test)).all()
    assert paired_p(np.empty((5, 0)), test).shape == (0,)


@pytest.mark.parametrize("test", TESTS)
def test_constant_differences_have_the_exact_p_and_no_warning(test, recwarn):
    assert p_of(np.full(6, 0.02), test) == 2 / 2**6
    assert p_of(np.zeros(6), test) == 1
    assert not recwarn.list


def test_many_seeds_are_drawn_with_the_plus_one_rule(rng):
    d = np.full(EXACT_SEEDS + 8, 0.02)
    assert p_of(d, rng=rng) == 2 / 10_000
    mixed = rng.normal(0.3, 1, size=EXACT_SEEDS + 8)
    assert p_of(mixed, rng=rng) == pytest.approx(stats.ttest_1samp(mixed, 0).pvalue, abs=0.02)


def test_drawn_flips_repeat_with_the_same_generator(rng):
    d = rng.normal(0.3, 1, size=20)
    assert p_of(d, rng=np.random.default_rng(5)) == p_of(d, rng=np.random.default_rng(5))


def test_drawing_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="needs rng"):
        p_of(np.ones(EXACT_SEEDS + 1))


def test_an_unknown_test_is_refused_by_name():
    with pytest.raises(BenchError, match="sign-flp"):
        p_of(np.ones(5), "sign-flp")


@given(points.filter(lambda d: np.ptp(d) > 0))
def test_equivalence_is_statsmodels_tost_of_pairs(d):
    base = np.linspace(0.3, 0.7, len(d))
    expected = ttost_paired(base + d, base, -0.01, 0.01)[0]
    assert equivalence_p(d[:, None], 0.01)[0] == pytest.approx(expected, abs=1e-9)


def test_equivalence_without_spread_needs_five_seeds(recwarn):
    assert equivalence_p(np.zeros((4, 1)), 0.01) > 0.05
    assert equivalence_p(np.zeros((5, 1)), 0.01) < 0.05
    assert equivalence_p(np.full((9, 1), 0.01), 0.01) == 1
    assert not recwarn.list


def test_equivalence_of_columns_with_missing_seeds_is_their_own(rng):
    d = rng.normal(0, 0.01, size=(6, 4))
    d[:2, 1], d[1:, 2] = np.nan, np.nan
    expected = [equivalence_p(column[np.isfinite(column)][:, None], 0.01)[0] for column in d.T]
    np.testing.assert_allclose(equivalence_p(d, 0.01), expected)
    assert np.isfinite(expected).tolist() == [True, True, False, True]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_holm_is_statsmodels_correction(size, rng):
    p = rng.uniform(0, 0.2, size=size).round(2)  # ties are likely
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_holm_leaves_out_a_test_that_could_not_be_made():
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])
    assert np.isnan(holm(np.full(2, np.nan))).all()


@pytest.mark.parametrize("seeds", [5, 6, 8, 10])
@pytest.mark.parametrize("test", ["sign-flip", "wilcoxon"])
def test_exact_tests_keep_their_level_with_ties(test, seeds, rng):
    """2000 studies, accuracies of 50 samples, so that ties are common: at most 5 % and two standard errors."""
    accuracy = rng.binomial(50, 0.8, size=(2, seeds, 2000)) / 50
    assert (paired_p(accuracy[0] - accuracy[1], test) <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)

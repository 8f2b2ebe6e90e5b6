"""Seeds that a decision needs, against enumeration and statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from egal_bench.statistics.planning import MOST_SEEDS, exact_floor, seeds_needed
from egal_bench.statistics.significance import holm, paired_p


@pytest.mark.parametrize("comparisons", [1, 2, 3, 6, 7, 24])
def test_exact_floor_is_the_first_number_that_can_reject(comparisons):
    def can_reject(seeds: int) -> bool:
        best = paired_p(np.ones((seeds, 1)))[0]
        return holm(np.array([best, *[1.0] * (comparisons - 1)]))[0] <= 0.05

    floor = exact_floor(comparisons)
    assert can_reject(floor)
    assert not can_reject(floor - 1)


@pytest.mark.parametrize(("effect", "comparisons"), [(0.5, 1), (0.5, 4), (1.0, 1), (-0.4, 2)])
def test_seeds_for_a_difference_are_statsmodels_power_rounded_up(effect, comparisons):
    exact = TTestPower().solve_power(effect_size=abs(effect), alpha=0.05 / comparisons, power=0.8)
    assert seeds_needed(effect, 1.0, margin=1e-9, comparisons=comparisons) == np.ceil(exact)


def test_large_numbers_of_seeds_are_rounded_up_by_at_most_6_percent():
    for effect in (0.1, 0.15, 0.2, 0.25):
        exact = TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8)
        assert exact <= seeds_needed(effect, 1.0, margin=1e-9) <= 1.06 * np.ceil(exact)


def test_seeds_for_equivalence_reach_the_power_in_simulation(rng):
    from statsmodels.stats.weightstats import DescrStatsW

    n = int(seeds_needed(0.0, 0.01, margin=0.01))
    d = rng.normal(0, 0.01, size=(n, 4000))
    assert (DescrStatsW(d).ttost_mean(-0.01, 0.01)[0] <= 0.05).mean() == pytest.approx(0.8, abs=0.05)


def test_a_wider_margin_never_needs_more_seeds():
    needed = [seeds_needed(0.004, 0.02, margin) for margin in (0.001, 0.01, 0.02, 0.05)]
    assert needed == sorted(needed, reverse=True)


def test_an_effect_far_too_small_needs_more_than_the_most():
    assert seeds_needed(1e-6, 1.0, margin=1e-9) == np.inf
    assert MOST_SEEDS == 1000


def test_no_spread_needs_what_the_exact_test_needs(recwarn):
    assert seeds_needed(0.5, 0.0, margin=0.01) == exact_floor(1) == 6
    assert seeds_needed(0.0, 0.0, margin=0.01) == 5
    assert not recwarn.list


def test_an_unknown_spread_leaves_the_number_unknown():
    assert np.isnan(seeds_needed(0.5, np.nan, margin=0.01))

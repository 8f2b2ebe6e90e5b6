"""Verdicts: each of the four, what decides them, and how often they are wrong."""

import numpy as np
import pandas as pd
import pytest

from egal_bench.statistics.significance import equivalence_p, holm, paired_p
from egal_bench.statistics.verdicts import classify, verdicts

BASE = np.linspace(0.5, 0.7, 8)
WIGGLE = np.array([1, -1, 2, -2, 1, -1, 3, -3]) / 1000


def verdict(table: pd.DataFrame, **options) -> pd.Series:
    return verdicts(table, **options).set_index("strategy").loc["egal"]


def test_a_steady_gain_is_better_and_a_steady_loss_is_worse(outcomes):
    assert verdict(outcomes({"random": BASE, "egal": BASE + 0.05 + WIGGLE})).verdict == "better"
    assert verdict(outcomes({"random": BASE, "egal": BASE - 0.05 + WIGGLE})).verdict == "worse"


def test_where_lower_is_better_a_steady_fall_is_better(outcomes):
    row = verdict(outcomes({"random": BASE, "egal": BASE - 0.05 + WIGGLE}, metric="nll"))
    assert (row.verdict, row.won) == ("better", 8)


def test_differences_well_within_the_margin_are_equivalent(outcomes):
    row = verdict(outcomes({"random": BASE, "egal": BASE + WIGGLE}))
    assert (row.verdict, row.reason) == ("equivalent", "the difference is within the margin of 0.01")


def test_a_significant_difference_within_the_margin_is_equivalent(outcomes):
    row = verdict(outcomes({"random": BASE, "egal": BASE + 0.004 + WIGGLE}))
    assert row.p_holm < 0.05
    assert (row.verdict, row.reason) == ("equivalent", "the difference is significant, but within the margin of 0.01")


def test_the_margin_decides_between_better_and_equivalent(outcomes):
    table = outcomes({"random": BASE, "egal": BASE + 0.004 + WIGGLE})
    assert verdict(table, margin=0.001).verdict == "better"


def test_noise_is_undecided_and_says_how_many_seeds_would_decide(outcomes):
    row = verdict(outcomes({"random": BASE, "egal": BASE + 0.02 + 20 * WIGGLE}))
    assert row.verdict == "undecided"
    assert row.reason == "the difference is neither significant nor shown to be within the margin of 0.01"
    assert 8 < row.seeds_needed < 100


def test_too_few_seeds_for_the_family_are_said_to_be_too_few(outcomes):
    table = {"random": BASE[:5], "egal": BASE[:5] + 0.05 + WIGGLE[:5], "entropy": BASE[:5] - 0.1 + WIGGLE[:5]}
    row = verdict(outcomes(table))
    assert (row.verdict, row.seeds_needed) == ("undecided", 7)
    assert row.reason == "5 seeds cannot show a difference among 2 comparisons; 7 can"


def test_the_same_few_seeds_suffice_for_the_t_test(outcomes):
    assert verdict(outcomes({"random": BASE[:5], "egal": BASE[:5] + 0.05 + WIGGLE[:5]}), test="t").verdict == "better"


def test_the_family_is_the_comparisons_of_one_data_set(outcomes):
    strategies = {"egal": BASE + 0.02 + WIGGLE, "entropy": BASE + 3 * WIGGLE, "badge": BASE[:1]}
    table = pd.concat(
        [outcomes({"random": BASE, **strategies}), outcomes({"random": BASE, "egal": BASE + WIGGLE}, "e")]
    )
    rows = verdicts(table).set_index(["dataset", "strategy"])
    assert rows.comparisons.to_dict() == {("d", "egal"): 2, ("d", "entropy"): 2, ("d", "badge"): 2, ("e", "egal"): 1}
    assert rows.loc[("d", "egal"), "p_holm"] == pytest.approx(2 * 2 / 2**8)


def test_order_of_rows_changes_no_verdict(outcomes, rng):
    table = outcomes({name: rng.uniform(size=7) for name in ("random", "egal", "entropy")})
    expected = verdicts(table).sort_values("strategy", ignore_index=True)
    shuffled = verdicts(table.sample(frac=1, random_state=9)).sort_values("strategy", ignore_index=True)
    pd.testing.assert_frame_equal(shuffled, expected)


def test_swapping_strategy_and_baseline_mirrors_the_verdict(outcomes):
    table = outcomes({"random": BASE, "egal": BASE + 0.05 + WIGGLE})
    mirrored = verdicts(table, "egal").iloc[0]
    assert (mirrored.verdict, mirrored.p) == ("worse", verdict(table).p)


@pytest.mark.parametrize(
    ("table", "expected", "reason"),
    [
        ({"random": [0.1], "egal": [0.2]}, "undecided", "only 1 seed was run with both this strategy and random"),
        ({"egal": [0.1, 0.2]}, "undecided", "no seed was run with both this strategy and random"),
        (
            {"random": [0.1, np.nan], "egal": [np.nan, 0.1]},
            "undecided",
            "no seed was run with both this strategy and random",
        ),
        ({"random": [0.5] * 6, "egal": [0.5] * 6}, "equivalent", "every seed gives exactly the value of random"),
        (
            {"random": [0.5] * 3, "egal": [0.5] * 3},
            "undecided",
            "3 seeds cannot show a difference among 1 comparison; 6 can",
        ),
    ],
    ids=["one seed", "no baseline", "no common seed", "constant metric", "constant metric, few seeds"],
)
def test_degenerate_tables_get_a_verdict_with_a_reason(outcomes, recwarn, table, expected, reason):
    row = verdict(outcomes(table))
    assert (row.verdict, row.reason) == (expected, reason)
    assert not recwarn.list


def test_the_baseline_alone_gets_no_verdict(outcomes):
    rows = verdicts(outcomes({"random": [0.1, 0.2]}))
    assert rows.empty
    assert {"verdict", "reason", "difference"} <= set(rows.columns)


@pytest.mark.parametrize(("seeds", "comparisons"), [(5, 1), (5, 6), (6, 1), (8, 1), (8, 6), (10, 1)])
@pytest.mark.parametrize(
    ("gain", "samples", "wrong"),
    [(0, 100, ["better", "worse"]), (0.01, 10_000, ["equivalent"])],
    ids=["null", "margin"],
)
def test_wrong_verdicts_occur_in_at_most_5_percent_of_studies(gain, samples, wrong, seeds, comparisons, rng):
    """2000 studies; a study is wrong if any verdict of its family is.

    With no true difference "better" and "worse" are wrong: 100 test samples, so that ties are common. With a true
    difference of the whole margin "equivalent" is wrong: 10 000 samples, so that the test has the power to err; its
    rate is 5 % then, to within two standard errors of the simulation.
    """
    rate = rng.normal(0.8, 0.03, size=(seeds, 2000, 1)) + gain * (np.arange(comparisons + 1) > 0)
    accuracy = rng.binomial(samples, rate.clip(0, 1)) / samples
    d = accuracy[..., 1:] - accuracy[..., :1]  # [S, studies, comparisons]
    p, beyond = (test(d.reshape(seeds, -1)).reshape(2000, -1) for test in (paired_p, lambda x: equivalence_p(x, 0.01)))
    p, beyond = np.apply_along_axis(holm, 1, p), np.apply_along_axis(holm, 1, beyond)
    share = np.isin(classify(d.mean(axis=0), p, beyond), wrong).any(axis=1).mean()
    assert share <= (0.05 if gain == 0 else 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000))

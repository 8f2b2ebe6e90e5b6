"""Summary statistics against numbers that were computed in another way."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from egal_bench.statistics.curves import aubc
from egal_bench.statistics.power import exact_floor, power_warning, smallest_p, standard_error
from egal_bench.statistics.summary import summarise

budgets = st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True).map(sorted)


@given(budgets, st.data())
def test_aubc_is_the_mean_height_of_the_curve_over_all_labels(labels, data):
    values = data.draw(st.lists(st.floats(0, 1), min_size=len(labels), max_size=len(labels)))
    curve = np.interp(np.arange(labels[0], labels[-1] + 1), labels, values)
    area = ((curve[1:] + curve[:-1]) / 2).mean()
    assert aubc(np.array(labels), np.array([values]))[0] == pytest.approx(area, abs=1e-12)


def test_aubc_weighs_rounds_by_the_labels_between_them():
    labels, values = np.array([100, 110, 210]), np.array([[0.0, 1.0, 1.0]])
    assert aubc(labels, values)[0] == pytest.approx((10 * 0.5 + 100 * 1.0) / 110)


def test_aubc_of_a_single_round_is_its_value():
    assert aubc(np.array([40]), np.array([[0.3], [0.7]])).tolist() == [0.3, 0.7]


def test_standard_error_is_the_spread_of_simulated_test_sets():
    accuracies = np.random.default_rng(0).binomial(919, 0.87, size=200_000) / 919
    assert standard_error(0.87, 919) == pytest.approx(accuracies.std(), rel=0.01)


@pytest.mark.parametrize("seeds", range(2, 12))
def test_smallest_p_is_the_exact_p_when_all_pairs_agree(seeds):
    exact = stats.wilcoxon(np.arange(1, seeds + 1) / 100, mode="exact").pvalue
    assert smallest_p(seeds) == pytest.approx(exact)


def test_power_warning_stands_where_no_test_can_reach_5_percent():
    for comparisons in range(1, 12):
        for seeds in range(1, 15):
            too_few = comparisons * 2 / 2**seeds >= 0.05
            assert (power_warning(seeds, comparisons) is not None) == too_few, (seeds, comparisons)
    assert "1 seed cannot show" in power_warning(1, 1)
    assert "8 seeds or more can" in power_warning(5, 6)
    assert exact_floor(6) == 8
    assert power_warning(1, 0) is None


def table(accuracy: dict[str, list[list[float]]], masks: int = 0) -> pd.DataFrame:
    """Return a `rounds` table of accuracies {strategy: [seed][round]} at 10, 20, 40 … labels."""
    rows = [
        {"dataset": "d", "strategy": name, "seed": seed, "round": r, "labels": 10 * 2**r, "masks": masks * (r > 0)}
        | {"accuracy": value, "macro_auc": value / 2, "test_size": 100, "train_accuracy": 1.0, "steps": 100}
        for name, runs in accuracy.items()
        for seed, values in enumerate(runs)
        for r, value in enumerate(values)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)  # in no order


def test_summary_pairs_by_seed():
    """Seeds differ by .3, strategies by .01 to .03 within a seed: only pairing shows a small, steady gain."""
    random = [[0.2, 0.2, 0.2], [0.5, 0.5, 0.5], [0.8, 0.8, 0.8]]
    better = [[0.21] * 3, [0.52] * 3, [0.83] * 3]
    row = summarise(table({"random": random, "egal": better}, masks=7)).set_index("strategy").loc["egal"]
    assert row.gain == pytest.approx(0.02)
    assert row.gain_sd == pytest.approx(0.01)
    assert (row.wins, row.seeds, row.labels, row.masks) == (3, 3, 40, 7)
    assert row.accuracy_sd == pytest.approx(np.std([0.21, 0.52, 0.83], ddof=1))


def test_final_metrics_are_of_the_last_round_and_aubc_of_all():
    row = summarise(table({"random": [[0.1, 0.3, 0.9]]})).iloc[0]
    assert row.accuracy == 0.9
    assert row.macro_auc == 0.45
    assert row.aubc == pytest.approx((10 * 0.2 + 20 * 0.6) / 30)
    assert row.test_se == pytest.approx((0.9 * 0.1 / 100) ** 0.5)
    assert np.isnan(row.accuracy_sd)


def test_summary_without_the_baseline_has_no_difference():
    rows = summarise(table({"entropy": [[0.1, 0.2]], "egal": [[0.3, 0.4]]}))
    assert rows.gain.isna().all()
    assert (rows.wins == 0).all()

"""Outcomes: the values that every statistic reads."""

import numpy as np
import pandas as pd
import pytest

from egal_bench.errors import BenchError
from egal_bench.statistics import outcomes as oc


def test_final_is_the_value_at_the_largest_budget(curves):
    values = oc.final(curves({"random": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]}))
    assert sorted(zip(values.seed, values.value, strict=True)) == [(0, 0.3), (1, 0.6)]


def test_area_weighs_rounds_by_the_labels_between_them(curves):
    values = oc.area(curves({"random": [[0.1, 0.3, 0.9]]}))
    assert values.value.tolist() == [pytest.approx((10 * 0.2 + 20 * 0.6) / 30)]


def test_a_run_that_ended_early_has_no_outcome(curves):
    values = oc.both(curves({"random": [[0.1, 0.2, 0.3]], "egal": [[0.1, 0.2]]}))
    assert set(values.strategy) == {"random"}


def test_budgets_of_one_data_set_do_not_touch_another(curves):
    table = pd.concat([curves({"random": [[0.1, 0.2, 0.3]]}), curves({"random": [[0.4, 0.6]]}, "other")])
    finals = oc.final(table).set_index("dataset").value
    assert finals.to_dict() == {"d": 0.3, "other": 0.6}
    assert oc.area(table).set_index("dataset").value["other"] == pytest.approx(0.5)


def test_zero_rounds_leave_the_first_value_as_both_outcomes(curves):
    values = oc.both(curves({"random": [[0.4], [0.5]]})).pivot(index="seed", columns="outcome", values="value")
    assert values.to_dict() == {"final": {0: 0.4, 1: 0.5}, "aubc": {0: 0.4, 1: 0.5}}


def test_a_run_that_occurs_twice_is_refused_by_name(rounds):
    table = rounds({"egal": [[0.1, 0.2]]})
    with pytest.raises(BenchError, match="dataset d, strategy egal, seed 0 occurs twice"):
        oc.curves(pd.concat([table, table]), ["accuracy"])


def test_by_seed_puts_a_missing_run_as_nan(outcomes):
    table = oc.by_seed(outcomes({"a": [0.1, np.nan, 0.3], "b": [0.4, 0.5, 0.6]}))
    assert table.index.tolist() == [0, 1, 2]
    assert np.isnan(table.loc[1, "a"])
    assert table["b"].tolist() == [0.4, 0.5, 0.6]


def test_lower_is_better_for_nll_and_ece_only():
    assert {metric for metric in oc.METRICS if oc.direction(metric) < 0} == {"nll", "ece"}

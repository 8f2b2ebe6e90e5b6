"""The penalty matrix against scipy, budget by budget."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from egal_bench.statistics.outcomes import curves as from_rounds
from egal_bench.statistics.penalty import penalties, penalty_matrix


@pytest.fixture
def accuracy(rng):
    """{strategy: accuracy [6 seeds][4 budgets]} with gains that grow with the budget."""
    noise = {name: rng.normal(0, 0.02, size=(6, 4)) for name in ("random", "egal", "badge")}
    steps = np.arange(4) / 100
    return {name: 0.5 + gain * steps + noise[name] for name, gain in (("random", 0), ("egal", 2), ("badge", 3))}


def test_wins_are_those_of_one_t_test_per_budget(accuracy, curves):
    rows = penalties(curves(accuracy)).set_index(["winner", "loser"])
    assert len(rows) == 6
    for winner, loser in permutations(accuracy, 2):
        p = stats.ttest_rel(accuracy[winner], accuracy[loser]).pvalue
        ahead = accuracy[winner].mean(axis=0) > accuracy[loser].mean(axis=0)
        wins = int(((p <= 0.05) & ahead).sum())
        assert rows.loc[(winner, loser), ["budgets", "wins", "penalty"]].tolist() == [4, wins, wins / 4]
    assert rows.wins.sum() > 0


def test_holm_counts_all_pairs_and_budgets_of_the_data_set(curves):
    """p is 2/2^7 at the only budget where the pair differs, among 2 budgets: 2 · 2/2^7 ≤ .05, with 4 it is not."""
    seeds = np.arange(7)[:, None] / 100
    two = {"a": np.hstack([seeds, seeds]), "b": np.hstack([seeds, seeds - 0.1])}
    four = {name: np.hstack([values[:, :1]] * 3 + [values[:, 1:]]) for name, values in two.items()}
    won = {n: penalties(curves(t), test="sign-flip").set_index("winner").loc["a"] for n, t in ((2, two), (4, four))}
    assert (won[2].wins, won[2].wins_holm) == (1, 1)
    assert (won[4].wins, won[4].wins_holm) == (1, 0)
    assert won[4].penalty == 0.25


def test_lower_wins_where_lower_is_better(accuracy, rounds):
    table = from_rounds(rounds(accuracy), ["accuracy", "nll"])
    rows = {
        metric: part.drop(columns="metric").reset_index(drop=True)
        for metric, part in penalties(table).groupby("metric")
    }
    pd.testing.assert_frame_equal(rows["accuracy"], rows["nll"])


def test_matrix_sums_data_sets_and_reads_row_beats_column(accuracy, curves):
    one = penalties(curves(accuracy))
    two = penalties(pd.concat([curves(accuracy), curves(accuracy, "other")]))
    matrix = penalty_matrix(one)
    pd.testing.assert_frame_equal(penalty_matrix(two), 2 * matrix)
    assert matrix.loc["badge", "random"] == one.set_index(["winner", "loser"]).penalty["badge", "random"]
    assert (np.diag(matrix) == 0).all()


def test_order_of_rows_changes_no_penalty(accuracy, curves):
    table, order = curves(accuracy), ["winner", "loser"]
    expected = penalties(table).sort_values(order, ignore_index=True)
    shuffled = penalties(table.sample(frac=1, random_state=1)).sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(shuffled, expected)


def test_pairs_without_common_seeds_have_no_penalty(curves, recwarn):
    table = curves({"a": [[0.1, 0.2]] * 4, "b": [[0.1, 0.2]] * 4})
    rows = penalties(table[(table.strategy == "a") == (table.seed < 2)])
    assert rows.budgets.tolist() == [0, 0]
    assert rows.penalty.isna().all()
    assert np.isnan(penalty_matrix(rows).loc["a", "b"])
    assert not recwarn.list


@pytest.mark.parametrize(
    "accuracy", [{"a": [[0.1, 0.2]] * 3}, {"a": [[0.5]], "b": [[0.6]]}], ids=["one strategy", "one seed"]
)
def test_nothing_to_test_is_no_win(curves, recwarn, accuracy):
    rows = penalties(curves(accuracy))
    assert rows.wins.sum() == 0
    assert penalty_matrix(rows).shape == (len(rows), len(rows))
    assert not recwarn.list


def test_a_constant_metric_is_never_won(curves, recwarn):
    rows = penalties(curves({"a": [[0.5, 0.5]] * 6, "b": [[0.5, 0.5]] * 6}))
    assert (rows.budgets.tolist(), rows.wins.tolist()) == ([2, 2], [0, 0])
    assert not recwarn.list

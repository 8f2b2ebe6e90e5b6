"""The check of a strategy's answer: exactly the budget, distinct indices of the pool, one score for each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egal_bench.errors import BenchError
from egal_bench.strategies import Query


@given(st.permutations(range(12)), st.integers(1, 12))
def test_answer_is_cut_to_the_budget(indices, budget):
    scores = np.arange(12, 0, -1)
    query = Query.checked(Query(np.array(indices), scores), "mine", budget, 12)
    assert query.indices.tolist() == list(indices[:budget])
    assert query.scores.tolist() == scores[:budget].tolist()
    assert query.scores.dtype == np.float64


def test_plain_indices_are_an_answer_without_scores():
    query = Query.checked([4, 1, 0], "mine", 2, 5)
    assert query.indices.tolist() == [4, 1]
    assert np.isnan(query.scores).all()


NAN3 = np.full(3, np.nan)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0, 0, 1], "repeated indices"),
        ([0, 1], "returned int64 [2]: it must return at least 3 ranked indices"),
        ([-1, 0, 1], "outside 0..9"),
        ([0, 1, 10], "outside 0..9"),
        ([0.0, 1.0, 2.0], "returned float64 [3]"),
        ([[0, 1, 2]], "returned int64 [1, 3]"),
        (None, "returned object []"),
        ("abc", "returned <U3 []"),
        ([True, False, True], "returned bool [3]"),
        (Query(np.arange(3), np.zeros(2)), "returned scores float64 [2] for 3 indices"),
        (Query(np.arange(3), np.array(["a", "b", "c"])), "returned scores <U1 [3]"),
        (Query(np.array([0, 0, 1]), NAN3), "repeated indices"),
    ],
)
def test_wrong_answer_is_described_by_what_it_is(answer, message):
    with pytest.raises(BenchError) as error:
        Query.checked(answer, "mine", 3, 10)
    assert "strategy 'mine'" in str(error.value)
    assert message in str(error.value)

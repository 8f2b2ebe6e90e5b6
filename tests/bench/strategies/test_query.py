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


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (None, "terms NoneType: they must map"),
        ({"d": np.zeros(7)}, "the term 'd' as float64 [7]: it must be one number for each of the 5 samples"),
        ({"d": np.zeros((5, 1))}, "float64 [5, 1]"),
        ({"d": list("abcde")}, "<U1 [5]"),
        ({"d": np.zeros(5, complex)}, "complex128 [5]"),
    ],
)
def test_terms_that_are_not_one_number_per_sample_are_refused(terms, message):
    answer = Query(np.arange(3), np.zeros(3), terms=terms)
    with pytest.raises(BenchError) as raised:
        Query.checked(answer, "mine", 3, 5)
    assert "strategy 'mine' returned" in str(raised.value)
    assert message in str(raised.value)


def test_terms_are_numbers_of_the_whole_pool():
    query = Query.checked(Query(np.arange(3), np.zeros(3), terms={"d": [1, 2, 3, 4, 5]}), "mine", 2, 5)
    assert query.terms["d"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]

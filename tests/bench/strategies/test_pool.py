"""The pool as a strategy sees it: read-only, closed except for what is declared, ranked with fair ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.strategies.pools import changed, made_pool
from egal_bench.errors import BenchError
from egal_bench.strategies.pool import NEEDS

OPENED_BY = {
    "overlap": "roi", "misalignment": "roi", "features": "features", "labelled_features": "features",
    "labels": "pool-labels",
}  # fmt: skip
EVERYTHING = frozenset(NEEDS)


@pytest.fixture
def open_pool():
    """A pool whose strategy has declared everything."""
    rng = np.random.default_rng(0)
    overlap = made_pool("egal").private["overlap"]
    private = {"overlap": overlap, "features": rng.normal(size=(30, 6)), "labelled_features": rng.normal(size=(8, 6))}
    return changed(made_pool("random"), needs=EVERYTHING, private=private | {"labels": rng.integers(0, 4, 30)})


def by_loop(scores: list[float], tie_order: np.ndarray) -> list[int]:
    """Return the indices by descending score, ties in `tie_order`, NaN last."""
    return sorted(
        range(len(scores)), key=lambda i: (np.isnan(scores[i]), 0 if np.isnan(scores[i]) else -scores[i], tie_order[i])
    )


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan"), -float("inf"), float("inf")]), min_size=1, max_size=20),
    st.integers(0, 99),
)
def test_rank_breaks_ties_by_tie_order_and_puts_nan_last(scores, seed):
    pool = made_pool(n=len(scores), seed=seed)
    query = pool.rank(np.array(scores))
    assert query.indices.tolist() == by_loop(scores, pool.tie_order)
    np.testing.assert_array_equal(query.scores, np.array(scores)[query.indices])


def test_rank_refuses_scores_of_another_shape():
    with pytest.raises(BenchError, match=r"'egal' ranks scores \[29\] of a pool of 30 samples"):
        made_pool().rank(np.zeros(29))


@pytest.mark.parametrize("name", OPENED_BY)
def test_what_is_not_declared_cannot_be_read(open_pool, name):
    for needs in (frozenset(), EVERYTHING - {OPENED_BY[name]}):
        with pytest.raises(BenchError, match=f"does not declare: add '{OPENED_BY[name]}' to its needs"):
            getattr(changed(open_pool, needs=needs), name)
    assert getattr(changed(open_pool, needs=frozenset({OPENED_BY[name]})), name) is not None


ARRAYS = ["keys", "logits", "entropy", "labelled_keys", "labelled_labels", "groups", "tie_order", "probabilities",
          "misalignment", "features", "labelled_features", "labels", "labels_revealed"]  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read_only(open_pool, name):
    array = getattr(open_pool, name)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = array[1]


@pytest.mark.parametrize("name", ["intersection", "cam_area", "roi_area", "dice"])
def test_arrays_of_the_overlap_are_read_only(open_pool, name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(open_pool.overlap, name)[0] = 0


def test_fields_cannot_be_replaced(open_pool):
    with pytest.raises(AttributeError):
        open_pool.budget = 99


def test_probabilities_are_the_softmax_even_of_large_logits(open_pool):
    exp = np.exp(open_pool.logits)
    np.testing.assert_allclose(open_pool.probabilities, exp / exp.sum(1, keepdims=True))
    shifted = changed(open_pool, logits=open_pool.logits + 1e4)
    np.testing.assert_allclose(shifted.probabilities, open_pool.probabilities)


def test_misalignment_is_one_minus_dice_with_empty_rois_filled():
    dice = np.array([0.2, np.nan, 0.6, np.nan, 0.4])
    for policy, filled in (("zero", 0.0), ("mean", 0.6), ("exclude", np.nan)):
        pool = made_pool("misalignment", 5, dice=dice, empty_roi=policy)
        np.testing.assert_allclose(pool.misalignment, [0.8, filled, 0.4, filled, 0.6])

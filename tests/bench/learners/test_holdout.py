"""The held-out samples: a stable, stratified share of the labelled set."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_bench.learners.holdout import held_out


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=120),
    share=st.floats(0, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100)
def test_held_out_is_stratified_repeatable_and_nested(labels, share, seed):
    labels, stream = np.array(labels), np.random.SeedSequence(seed)
    is_held_out = held_out(labels, 4, share, stream)
    for k in np.unique(labels):
        of_class = is_held_out[labels == k]
        assert abs(of_class.sum() - share * len(of_class)) <= 1
        assert not of_class[0]
    np.testing.assert_array_equal(is_held_out, held_out(labels, 4, share, np.random.SeedSequence(seed)))
    earlier = len(labels) // 2
    np.testing.assert_array_equal(is_held_out[:earlier], held_out(labels[:earlier], 4, share, stream))


def test_other_seeds_hold_out_other_samples():
    labels = np.zeros(100, int)
    choices = {held_out(labels, 1, 0.2, np.random.SeedSequence(seed)).tobytes() for seed in range(20)}
    assert len(choices) == 4  # every fifth sample, from the second, third, fourth or fifth on

"""The best samples of a pool are those of a full sort, however the pool is divided."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egal_bench.querying.best import Best, tie_ranks
from egal_bench.querying.score_files import Part
from egal_bench.strategies import Overlap

SCORES = st.sampled_from([np.nan, -np.inf, -1.0, 0.0, 0.5, 0.5000000000000001, 2.0])  # many ties


def part_of(keys):
    numbers = np.zeros(len(keys))
    overlap = Overlap(numbers, numbers, numbers, numbers)
    return Part(np.array(keys, str), np.array(keys, str), np.arange(len(keys)), numbers[:, None], numbers, overlap)


def by_full_sort(rows, number, seed):
    """The names of the best (pool, key, score): by score, NaN last, then by the hash of the name."""

    def rank(row):
        pool, key, score = row
        name = hashlib.blake2b(f"{pool}/{key}".encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
        return np.isnan(score), 0.0 if np.isnan(score) else -score, int.from_bytes(name, "little")

    return [(pool, key) for pool, key, _ in sorted(rows, key=rank)[:number]]


@given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 5), st.data())
def test_best_is_a_full_sort_whatever_the_division_and_order(scores, number, seed, data):
    rows = [("ab"[i % 2], f"k{i // 2}", score) for i, score in enumerate(scores)]
    best, left = Best(number, seed), list(data.draw(st.permutations(rows)))
    while left:
        size = data.draw(st.integers(1, len(left)))
        piece, left = left[:size], left[size:]
        for pool in "ab":
            own = [row for row in piece if row[0] == pool]
            best.add(pool, "s", part_of([key for _, key, _ in own]), np.array([score for *_, score in own]))
    assert list(zip(best.pools, best.part.keys, strict=True)) == by_full_sort(rows, number, seed)


def test_tie_ranks_are_uniform_and_differ_between_seeds_and_pools():
    keys, pool = np.array([f"sample-{i}" for i in range(4000)]), np.full(4000, "p")
    ranks = tie_ranks(pool, keys, 0)
    counts = np.bincount((ranks >> np.uint64(60)).astype(int), minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 37.7  # the 99.9 % quantile of chi-squared with 15 degrees of freedom
    for other in (tie_ranks(pool, keys, 1), tie_ranks(np.full(4000, "q"), keys, 0)):
        correlation = np.corrcoef(ranks.argsort().argsort(), other.argsort().argsort())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("number", [1, 3])
def test_a_part_without_samples_changes_nothing(number):
    best = Best(number, 0)
    best.add("p", "s", part_of(["a", "b"]), np.array([1.0, 2.0]))
    before = best.part.keys.tolist()
    best.add("p", "t", part_of([]), np.empty(0))
    assert best.part.keys.tolist() == before

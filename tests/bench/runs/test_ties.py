"""Ties: a random order per seed, which neither the names of files nor the strategy decide."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from egal_bench.config import Config
from egal_bench.runs.purchase import Buyer
from egal_bench.scoring.scores import Scores
from egal_bench.strategies import Overlap, Query, find, strategy

SAMPLES, INITIAL, BUDGET, SEEDS = 24, 4, 5, 3000
STREAMS = ("pool", "model", "query", "loader", "ties")


class ConstantLearner:
    """A learner for which all samples look alike."""

    def score(self, positions, needs, roi_of=None):
        ones = np.ones(len(positions))
        overlap = Overlap(ones.astype(int), ones.astype(int), ones.astype(int), ones * 0)
        return Scores(np.zeros((len(positions), 3)), ones * np.log(3), overlap)


@strategy("constant-for-this-test")
def constant(pool):
    """The same score for all."""
    return pool.rank(np.zeros(len(pool)))


@strategy("two-levels-for-this-test")
def two_levels(pool):
    """A higher score for names that end in an even digit: ties within both halves."""
    return pool.rank(np.array([int(key[-1]) % 2 == 0 for key in pool.keys], dtype=float))


def dataset(names):
    """Return a data set of a pool alone, whose samples have these names; positions are those of a shard set."""
    keys = np.array(names)
    return SimpleNamespace(
        pool=np.argsort(keys, kind="stable"), keys=keys, labels=np.zeros(SAMPLES, int), groups=keys,
        shards=SimpleNamespace(classes=("a", "b", "c")),
    )  # fmt: skip


def bought(names, name, seed):
    """Return the positions of the initial set, and of the samples that the first query buys."""
    streams = dict(zip(STREAMS, np.random.SeedSequence(seed).spawn(len(STREAMS)), strict=True))
    config = Config(init=INITIAL, budget=BUDGET)
    buyer = Buyer(dataset(names), find(name), ConstantLearner(), config, streams)
    labelled = buyer.initial_set()
    return labelled, buyer.buy(labelled, 1)


def counts(names, name):
    """Return how often each position is bought over SEEDS seeds."""
    total = np.zeros(SAMPLES)
    for seed in range(SEEDS):
        total[bought(names, name, seed)[1].positions] += 1
    return total


@pytest.mark.parametrize("name", ["constant-for-this-test", "misalignment", "random"])
def test_equal_scores_buy_uniformly_whatever_the_names(name):
    """Names sorted by class, as many data sets have them, do not favour a class."""
    names = [f"{'abc'[i * 3 // SAMPLES]}{i:02}" for i in range(SAMPLES)]
    observed = counts(names, name)
    assert observed.sum() == SEEDS * BUDGET
    assert stats.chisquare(observed).pvalue > 1e-4


@pytest.mark.parametrize("name", ["constant-for-this-test", "entropy"])
def test_relabelling_leaves_the_distribution_unchanged(name):
    names = [f"k{i:02}" for i in range(SAMPLES)]
    relabelled = list(np.random.default_rng(0).permutation(names))
    table = np.array([counts(names, name), counts(relabelled, name)])
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_all_strategies_of_a_seed_share_the_order_of_ties():
    names = [f"k{i:02}" for i in range(SAMPLES)]
    for seed in range(20):
        _, one = bought(names, "constant-for-this-test", seed)
        _, other = bought(names, "misalignment", seed)
        assert one.positions.tolist() == other.positions.tolist()
    assert len({tuple(bought(names, "entropy", seed)[1].positions) for seed in range(20)}) == 20


def test_tied_says_whose_score_a_sample_that_was_not_bought_has():
    names = [f"k{i:02}" for i in range(SAMPLES)]
    assert bought(names, "constant-for-this-test", 0)[1].tied.all()
    assert not bought(names, "random", 0)[1].tied.any()
    query = Query.checked(Query(np.array([3, 1, 2, 0]), np.array([3.0, 2.0, 1.0, 1.0])), "s", 3, 4)
    assert query.tied.tolist() == [False, False, True]
    _, halves = bought(names, "two-levels-for-this-test", 1)
    assert all(int(names[position][-1]) % 2 == 0 for position in halves.positions)
    assert halves.tied.all()

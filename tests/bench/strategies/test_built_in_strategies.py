"""What every built-in strategy must hold beyond test_strategy_contract.py: on hard pools, threads, memory maps."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.strategies.pools import permuted_stream
from egal_bench.strategies import expand, find

EVERY = [
    name
    for name in expand(["all", "egal(diverse=2)", "probcover(delta=1.5)", "egal-convex(per-class=true)"])
    if name != "random"
]
every = pytest.mark.parametrize("name", EVERY)
READ_FEATURES = ["kcenter", "badge", "typiclust", "probcover", "probcover(delta=1.5)", "egal(diverse=10)"]


def shifted(pool, permutation, rng):
    """Return `pool` with its rows permuted, each with its tie order, and other keys."""
    private = {
        name: value[permutation] if name in {"overlap", "features", "draws", "labels"} else value
        for name, value in pool.private.items()
    }
    if "maps" in private:
        private["maps"] = permuted_stream(private["maps"], permutation)
    rows = {name: getattr(pool, name)[permutation] for name in ("logits", "entropy", "groups", "tie_order")}
    renamed = np.array([f"other{i}" for i in range(len(pool))])
    return dataclasses.replace(pool, keys=renamed, private=private, rng=rng, **rows)


def hard(seed, n=30):
    """Return features and logits with copies, ties, constant channels and outliers."""
    rng = np.random.default_rng(seed)
    features = rng.integers(-2, 3, size=(n, 4)).astype(np.float32) * rng.choice([0, 1, 100], 4).astype(np.float32)
    logits = rng.integers(-1, 2, size=(n, 3)).astype(np.float32)
    copies = rng.integers(0, n, n)
    return (features[copies], logits[copies]) if seed % 2 else (features, logits)


@every
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_permutation_of_the_pool_buys_the_same_samples(name, make, seed):
    features, logits = hard(seed)
    dice = np.random.default_rng(seed).choice([0.0, 0.3, 0.7, np.nan], 30)
    arguments = {"n": 30, "features": features, "logits": logits, "dice": dice, "seed": seed}
    strategy, pool = make(name, **arguments)
    permutation = np.random.default_rng(seed).permutation(30)
    query, other = strategy(pool), strategy(shifted(pool, permutation, np.random.default_rng(11)))
    assert permutation[other.indices].tolist() == query.indices.tolist()
    np.testing.assert_array_equal(other.scores, query.scores)


@every
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), missing=st.sets(st.integers(0, 29), max_size=30))
def test_nan_of_logits_and_features_is_bought_last(name, make, seed, missing):
    features, logits = hard(seed)
    missing = sorted(missing)
    draws = np.random.default_rng(seed).normal(size=(30, 5, 3))
    draws[missing] = features[missing] = logits[missing] = np.nan
    dice, area = np.random.default_rng(seed).random(30), np.arange(30)
    dice[missing], area[missing] = np.nan, -1
    strategy, pool = make(
        name, n=30, features=features, logits=logits, draws=draws, dice=dice, roi_area=area, budget=30
    )
    indices = strategy(pool).indices
    assert sorted(indices) == list(range(30))
    if name not in {"class-balanced-random"} and not name.startswith("misalignment"):
        assert set(indices[30 - len(missing) :]) == set(missing)


@every
@pytest.mark.parametrize("budget", [1, 25])
@pytest.mark.parametrize("constant", [True, False])
def test_a_budget_of_the_whole_pool_buys_each_sample_once(name, make, budget, constant):
    features = np.full((25, 4), 3.0, np.float32) if constant else None
    logits = np.zeros((25, 3), np.float32) if constant else None
    strategy, pool = make(name, n=25, features=features, logits=logits, budget=budget)
    assert len(set(strategy(pool).indices)) == budget


@every
def test_one_labelled_class_and_one_labelled_sample_suffice(name, make):
    strategy, pool = make(name, labelled=1, labelled_labels=np.array([2]))
    assert len(set(strategy(pool).indices)) == pool.budget


@every
def test_the_same_seed_buys_the_same_samples(name, make):
    first, second = (bound(pool) for bound, pool in (make(name), make(name)))
    assert first.indices.tolist() == second.indices.tolist()
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.parametrize("name", READ_FEATURES)
def test_the_number_of_threads_changes_nothing(name, make):
    features = np.random.default_rng(0).normal(size=(3000, 40)).astype(np.float32)
    single, pool = make(name, n=3000, features=features, threads=1)
    expected = single(pool)
    for threads in (2, 3):
        strategy, pool = make(name, n=3000, features=features, threads=threads)
        query = strategy(pool)
        assert query.indices.tolist() == expected.indices.tolist()
        np.testing.assert_array_equal(query.scores, expected.scores)


@pytest.mark.parametrize("name", READ_FEATURES)
def test_memory_mapped_features_are_read_in_place(name, make, tmp_path):
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    labelled = features[:5] + 1
    (strategy, pool), (_, on_disk) = (
        make(name, features=array, labelled_features=labelled) for array in (features, mapped)
    )
    assert strategy(pool).indices.tolist() == strategy(on_disk).indices.tolist()


@every
def test_only_declared_parts_of_the_pool_are_read(name, make):
    strategy, pool = make(name)
    opened = {"roi": ["overlap"], "features": ["features", "labelled_features"], "draws": ["draws"],
              "pool-labels": ["labels"], "labelled-roi": ["labelled_roi"],
              "maps": ["maps", "labelled_maps"]}  # fmt: skip
    allowed = {part for need in find(name).needs for part in opened.get(need, [])}
    hidden = dataclasses.replace(pool, private={part: pool.private[part] for part in allowed})
    assert len(strategy(hidden).indices) == pool.budget

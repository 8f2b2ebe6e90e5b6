"""What every strategy must hold, built in or a user's: run on everything that can be named."""

import numpy as np
import pytest
from pydantic_core import PydanticUndefined

from bench.strategies.pools import CLASSES, changed, made_pool, map_stream, permuted
from egal_bench.config import Config
from egal_bench.strategies import BoundStrategy, Overlap, find
from egal_bench.strategies.pool import NEEDS
from egal_bench.strategies.registry import GROUPS, built_in

FOREIGN = ["bench.strategies.foreign:Earlier", "bench.strategies.foreign:distant"]
NAMES = [*built_in(), *FOREIGN]
SEEDS = range(3)


def draws(name: str) -> bool:
    """Return whether the strategy draws its query, as `random` does, instead of ranking by scores."""
    return bool(np.isnan(find(name)(made_pool(name)).scores).all())


@pytest.fixture(params=NAMES)
def strategy(request) -> BoundStrategy:
    return find(request.param)


@pytest.fixture(params=[name for name in NAMES if not draws(name)])
def ranking(request) -> BoundStrategy:
    """A strategy that ranks by scores."""
    return find(request.param)


@pytest.fixture(params=[name for name in NAMES if draws(name)])
def drawing(request) -> BoundStrategy:
    """A strategy that draws its query."""
    return find(request.param)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_buys_its_budget_of_distinct_samples(strategy, seed):
    query = strategy(made_pool(strategy, n=30, budget=7, seed=seed))
    assert query.indices.shape == query.scores.shape == (7,)
    assert query.indices.dtype == np.int64
    assert len(set(query.indices.tolist())) == 7
    assert 0 <= query.indices.min() <= query.indices.max() < 30


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_the_pool_changes_only_the_indices(ranking, seed):
    pool = made_pool(ranking, seed=seed)
    other = permuted(pool, np.random.default_rng(seed + 100).permutation(len(pool)))
    query, other_query = ranking(pool), ranking(other)
    assert pool.keys[query.indices].tolist() == other.keys[other_query.indices].tolist()
    np.testing.assert_allclose(other_query.scores, query.scores, rtol=1e-12)


def test_same_pool_and_generator_give_the_same_query(strategy):
    query, again = (strategy(made_pool(strategy, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(query.indices, again.indices)
    np.testing.assert_array_equal(query.scores, again.scores)


def test_only_the_generator_decides_what_is_drawn(drawing):
    pool, other = (made_pool(drawing, seed=seed) for seed in (1, 2))
    query, other_images = drawing(pool), drawing(changed(pool, logits=other.logits, entropy=other.entropy))
    np.testing.assert_array_equal(query.indices, other_images.indices)
    other_draw = drawing(made_pool(drawing, seed=1, draw_seed=8))
    assert query.indices.tolist() != other_draw.indices.tolist()


def constant_pool(strategy: BoundStrategy, n: int = 30):
    """Return a pool in which no sample differs from another."""
    pool = made_pool(strategy, n)
    ones = np.ones(n, int)
    private = {
        "overlap": Overlap(ones, ones, ones, np.full(n, 0.5)), "features": np.ones_like(made_pool("egal", n).logits),
        "labelled_features": np.zeros((8, len(CLASSES))), "labels": 0 * ones, "draws": np.zeros((n, 5, len(CLASSES))),
        "labelled_roi": np.ones((8, 4, 4), bool), "maps": map_stream(np.ones((n, 2, 2, 2)), np.ones((n, 2, 2))),
        "labelled_maps": map_stream(np.ones((8, 2, 2, 2)), np.ones((8, 2, 2))),
    }  # fmt: skip
    return changed(
        pool, logits=np.zeros_like(pool.logits), entropy=np.full(n, np.log(len(CLASSES))),
        private={name: private[name] for name in pool.private},
    )  # fmt: skip


def test_ties_are_broken_by_the_order_of_ties(ranking):
    if ranking.name in {"badge", "probcover"}:
        pytest.skip("draws at random among samples that do not differ, as its paper has it")
    pool = constant_pool(ranking)
    query = ranking(pool)
    assert query.indices.tolist() == np.argsort(pool.tie_order)[: pool.budget].tolist()


def pool_with_nan(strategy: BoundStrategy, budget: int):
    """Return a pool of 30 samples of which 3, 4 and 20 have no finite output."""
    pool = made_pool(strategy, budget=budget)
    logits, entropy = pool.logits.copy(), pool.entropy.copy()
    logits[[3, 4, 20]], entropy[[3, 4, 20]] = np.nan, np.nan
    return changed(pool, logits=logits, entropy=entropy)


@pytest.mark.parametrize("budget", [5, 27, 30])
def test_nan_in_the_output_breaks_nothing(strategy, budget):
    assert len(strategy(pool_with_nan(strategy, budget)).indices) == budget


@pytest.mark.parametrize("budget", [5, 27, 30])
def test_nan_is_bought_last(ranking, budget):
    nan = np.isnan(ranking(pool_with_nan(ranking, budget)).scores)
    assert nan.sum() <= max(0, budget - 27)
    assert not (nan[:-1] & ~nan[1:]).any()  # none before a number


def test_pool_without_any_roi_is_bought_from(strategy):
    query = strategy(made_pool(strategy, dice=np.full(30, np.nan)))
    assert len(query.indices) == 5


@pytest.mark.parametrize("n", [1, 5])
def test_pool_as_small_as_the_budget_is_bought_completely(strategy, n):
    query = strategy(made_pool(strategy, n=n, budget=n))
    assert sorted(query.indices.tolist()) == list(range(n))


def test_one_labelled_class_is_enough(strategy):
    pool = made_pool(strategy, labelled=3)
    query = strategy(changed(pool, labelled_labels=np.zeros(3, int)))
    assert len(query.indices) == 5


def test_it_changes_nothing_of_what_it_sees(strategy):
    pool, untouched = made_pool(strategy), made_pool(strategy)
    strategy(pool)
    for name, value in vars(untouched).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(pool, name), value, err_msg=name)


def test_its_canonical_name_finds_it_again(strategy):
    again = find(strategy.name)
    assert (again.name, dict(again.parameters)) == (strategy.name, dict(strategy.parameters))


def test_it_declares_itself_for_the_list(strategy):
    declared = strategy.strategy
    assert declared.summary
    assert declared.needs <= NEEDS.keys()
    assert declared.groups <= set(GROUPS)
    assert bool(declared.source) == (strategy.name in FOREIGN)


def test_every_parameter_has_type_default_and_description(strategy):
    for name, field in strategy.strategy.parameters.model_fields.items():
        assert field.annotation is not None, name
        assert field.default is not PydanticUndefined, name
        assert field.description, name


def test_defaults_of_shared_parameters_are_those_of_their_flags(strategy):
    for name, field in strategy.strategy.parameters.model_fields.items():
        if name in Config.model_fields:
            flag = Config.model_fields[name]
            assert (field.default, field.annotation) == (flag.default, flag.annotation), name
            assert field.metadata == flag.metadata, name


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_strategies_obtain_what_they_declare(name):
    pool = made_pool(name, budget=30)
    query = find(name)(pool)
    if "Earlier" in name:
        expected = pool.entropy * (1 - pool.private["overlap"].dice)
    else:
        steps = pool.private["features"][:, None] - pool.private["labelled_features"][None]
        expected = pool.entropy + np.sqrt((steps**2).sum(2)).min(1)
    np.testing.assert_allclose(query.scores, np.sort(expected)[::-1])
    np.testing.assert_allclose(expected[query.indices], query.scores)

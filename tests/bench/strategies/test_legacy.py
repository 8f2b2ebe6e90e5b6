"""The earlier form of a strategy: a callable with `needs_roi` and `needs_features` that returns ranked indices."""

import numpy as np
import pytest

from bench.strategies.pools import made_pool
from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.specifications import Specification
from egal_bench.strategies.declaration import BoundStrategy
from egal_bench.strategies.legacy import from_two_attributes


def bound(function, *, roi: bool = False, features: bool = False) -> BoundStrategy:
    function.needs_roi, function.needs_features = roi, features
    return from_two_attributes("mine", function).bound(Specification("mine"), Config())


def test_earlier_names_still_read_the_same():
    seen = {}

    def mine(pool):
        seen.update(
            acquisition=pool.acquisition, labels=pool.labels_revealed, scaled=pool.scale(pool.entropy), n=len(pool)
        )
        return np.arange(len(pool))

    strategy = bound(mine, roi=True)
    pool = made_pool(strategy, normalise="minmax")
    strategy(pool)
    assert seen["acquisition"] is pool.overlap
    assert seen["labels"] is pool.labelled_labels
    assert (seen["scaled"].min(), seen["scaled"].max()) == (0.0, 1.0)
    assert seen["n"] == 30


def test_rank_returns_plain_indices_and_keeps_the_scores():
    strategy = bound(lambda pool: pool.rank(pool.entropy))
    pool = made_pool(strategy)
    query = strategy(pool)
    assert query.indices.tolist() == np.argsort(-pool.entropy)[:5].tolist()
    np.testing.assert_array_equal(query.scores, pool.entropy[query.indices])


def test_scores_follow_indices_that_were_reordered_after_ranking():
    strategy = bound(lambda pool: pool.rank(pool.entropy)[::-1])
    pool = made_pool(strategy)
    query = strategy(pool)
    assert query.indices.tolist() == np.argsort(pool.entropy)[:5].tolist()
    np.testing.assert_array_equal(query.scores, pool.entropy[query.indices])


def test_indices_without_scores_are_recorded_as_nan():
    query = bound(lambda pool: np.arange(len(pool))[::-1])(made_pool("random"))
    assert query.indices.tolist() == [29, 28, 27, 26, 25]
    assert np.isnan(query.scores).all()


@pytest.mark.parametrize(
    ("read", "need"),
    [("acquisition", "roi"), ("overlap", "roi"), ("misalignment", "roi"), ("features", "features"),
     ("labelled_features", "features")],
)  # fmt: skip
def test_attributes_declare_what_may_be_read(read, need):
    def mine(pool):
        getattr(pool, read)
        return np.arange(len(pool))

    declared = bound(mine, roi=need == "roi", features=need == "features")
    assert declared.needs == {need}
    declared(made_pool(declared))
    undeclared = bound(mine)
    with pytest.raises(BenchError, match=f"'mine' reads what it does not declare: add '{need}' to its needs"):
        undeclared(made_pool(undeclared))


def test_class_of_callables_is_made_into_one():
    class Mine:
        """First line.

        More lines.
        """

        needs_roi = needs_features = False

        def __call__(self, pool):
            return np.arange(len(pool))

    strategy = from_two_attributes("mine", Mine)
    assert strategy.summary == "First line."
    assert strategy.source == __file__


def test_object_that_is_no_strategy_is_refused_with_both_ways():
    class Half:
        needs_roi = True

        def __call__(self, pool): ...

    for candidate, missing in ((Half, "needs_features"), (lambda pool: pool, "needs_roi and needs_features")):
        with pytest.raises(BenchError, match=rf"--strategies mine: not a strategy: decorate it .* set {missing} to"):
            from_two_attributes("mine", candidate)
    with pytest.raises(BenchError, match="not a strategy"):
        from_two_attributes("mine", 3)

"""Strategies of a user in a comparison: what they obtain, and what is said when they answer wrongly."""

import pytest

from bench.tiny import tiny_config
from egal_bench.errors import BenchError
from egal_bench.runs.comparison import compare
from egal_bench.tables.results import load


@pytest.fixture
def compared(phantom_dataset, user_module, unrendered):
    """Return a function that compares one strategy in this process, into ./out, and returns its queries."""

    def execute(strategy: str):
        compare(tiny_config(phantom_dataset(150).shards.where, strategies=(strategy,)))
        return load("out")["selections"].query("round > 0")

    return execute


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "repeated indices"),
        ("[0, 1]", "at least 10 ranked indices"),
        ("range(-1, 10)", r"outside 0\.\."),
        ("pool.acquisition", "does not declare"),
    ],
)
def test_wrong_answer_is_described_with_the_name_of_the_run(compared, user_module, body, message):
    user_module("mine", f"""
        def mine(pool): return list({body})
        mine.needs_roi, mine.needs_features = False, False
        """)  # fmt: skip
    with pytest.raises(BenchError, match=rf"^set, mine:mine, seed 0: .*{message}"):
        compared("mine:mine")


def test_strategy_obtains_the_features_that_it_declares(compared, user_module):
    user_module("far", """
        import numpy as np
        def far(pool):
            distance = np.linalg.norm(pool.features[:, None] - pool.labelled_features[None], axis=2).min(1)
            assert len(pool.labels_revealed) == len(pool.labelled_features)
            return pool.rank(distance)
        far.needs_roi, far.needs_features = False, True
        """)  # fmt: skip
    queried = compared("far:far")
    assert (queried.score > 0).all()
    assert queried.strategy.unique().tolist() == ["far:far"]


def test_pool_states_round_budget_classes_groups_and_labelled_keys(compared, user_module, phantom_dataset):
    user_module("looks", """
        import numpy as np
        from egal_bench import strategy
        from egal_bench.strategies import Query
        seen = []
        @strategy("looks")
        def looks(pool, *, skip: int = 0):
            seen.append((pool.round, pool.budget, pool.classes, dict(zip(pool.keys, pool.groups)), skip,
                         list(pool.labelled_keys), list(pool.labelled_labels), list(pool.keys)))
            return Query(np.arange(len(pool)), np.zeros(len(pool)))
        """)  # fmt: skip
    compared("looks:looks(skip=2)")
    import looks

    dataset = phantom_dataset(150)
    label_of = dict(zip(dataset.keys.tolist(), dataset.labels.tolist(), strict=True))
    group_of = dict(zip(dataset.keys.tolist(), dataset.groups.tolist(), strict=True))
    for number, (round_, budget, classes, groups, skip, labelled, labels, keys) in enumerate(looks.seen, 1):
        assert (round_, budget, skip) == (number, 10, 2)
        assert classes == tuple(dataset.shards.classes)
        assert all(group_of[key] == group for key, group in groups.items())
        assert len(labelled) == 15 + 10 * (number - 1)
        assert [label_of[key] for key in labelled] == labels
        assert keys == sorted(set(dataset.keys[dataset.pool]) - set(labelled))
    assert looks.seen[1][5][15:] == looks.seen[0][7][:10]  # what was bought, in its order


def test_exception_without_a_readable_message_is_named_by_its_type(compared, user_module):
    user_module("mute", """
        class Mute(Exception):
            def __str__(self): raise ValueError
        def mute(pool): raise Mute
        mute.needs_roi, mute.needs_features = False, False
        """)  # fmt: skip
    with pytest.raises(BenchError, match=r"strategy 'mute:mute' raised Mute: Mute \(mute\.py, line 4\)"):
        compared("mute:mute")


def test_none_beside_a_table_to_keep_is_refused():
    with pytest.raises(ValueError, match="'none' stands alone"):
        tiny_config("set", keep="none,pool")

"""The table `pool`: a random subset, the same for every strategy, and the purchases; it changes nothing of a run."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from egal_bench.runs.pool_rows import is_recorded, nearest_distance, pool_rows
from egal_bench.scoring.scores import Scores
from egal_bench.strategies import Overlap
from egal_bench.tables.results import load

N = 3000


@pytest.fixture
def query(rng):
    """A query on a pool of even positions: a function from bought positions and terms to its rows, and its arrays."""
    features, tie_order = rng.normal(size=(2 * N, 4)), rng.permutation(2 * N)
    area = rng.integers(0, 50, 2 * N)

    def score(positions, needs):
        dice = np.where(area[positions] > 0, 0.25, np.nan)
        overlap = Overlap(area[positions], area[positions], area[positions], dice)
        return Scores(np.zeros((len(positions), 2)), positions / N, overlap, features[positions].astype(np.float32))

    dataset = SimpleNamespace(keys=np.array([f"sample {i:05}" for i in range(2 * N)]))
    unlabelled, labelled = np.arange(0, 2 * N, 2), np.arange(1, 100, 2)

    def build(bought, terms=None):
        purchase = SimpleNamespace(unlabelled=unlabelled, labelled=labelled, positions=bought, terms=terms or {})
        rows = pool_rows(dataset, SimpleNamespace(score=score), purchase, 4, tie_order)
        return pd.DataFrame(rows).set_index("key")

    return SimpleNamespace(rows_of=build, unlabelled=unlabelled, tie_order=tie_order, area=area)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def key(position):
    return f"sample {position:05}"


def test_the_subset_is_the_same_whatever_is_bought(query):
    first, last = query.unlabelled[:7], query.unlabelled[-7:]
    one, other = query.rows_of(first), query.rows_of(last)
    random = sorted(query.unlabelled, key=lambda position: query.tie_order[position])[:1000]
    for rows, bought in ((one, first), (other, last)):
        assert set(rows.index) == {key(position) for position in [*random, *bought]}
        assert set(rows.index[rows.bought]) == {key(position) for position in bought}
        assert set(rows["round"]) == {4}


def test_values_stand_beside_their_own_keys(query):
    predicted = np.arange(N) / N  # by place in the pool of even positions
    rows = query.rows_of(query.unlabelled[:3], {"predicted_misalignment": predicted})
    positions = np.array([int(name.split()[1]) for name in rows.index])
    np.testing.assert_allclose(rows.entropy, positions / N)
    np.testing.assert_allclose(rows.predicted_misalignment, positions / (2 * N))
    assert (rows.roi_area == query.area[positions]).all()
    assert (rows.misalignment.isna() == (rows.roi_area == 0)).all()
    assert (rows.misalignment.dropna() == 0.75).all()


def test_without_a_prediction_the_column_is_unknown(query):
    assert query.rows_of(query.unlabelled[:3]).predicted_misalignment.isna().all()


def test_distance_is_to_the_nearest_labelled_sample(rng):
    features, labelled = rng.normal(size=(700, 3)), rng.normal(size=(40, 3))
    expected = [min(np.linalg.norm(row - other) for other in labelled) for row in features]
    np.testing.assert_allclose(nearest_distance(features, labelled), expected)


def test_queries_are_recorded_at_powers_of_two():
    assert [round_ for round_ in range(40) if is_recorded(round_)] == [1, 2, 4, 8, 16, 32]


def test_bought_samples_have_the_values_of_their_selection(finished):
    tables = load(finished[0])
    bought = tables["pool"].query("bought")
    names = ["dataset", "strategy", "seed", "round", "key"]
    both = tables["selections"].query("round > 0").merge(bought, on=names, suffixes=("", "_pool"))
    assert len(both) == len(bought) == (tables["selections"]["round"] > 0).sum() > 0
    assert (both.roi_area == both.roi_area_pool).all()
    for name in ("entropy", "misalignment"):
        np.testing.assert_allclose(both[name], both[f"{name}_pool"], atol=1e-5)

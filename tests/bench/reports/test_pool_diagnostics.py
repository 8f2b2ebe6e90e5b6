"""The diagnostics of the pool, against the same numbers computed from the rows of the table."""

import numpy as np
import pytest
from scipy import stats

from bench.reports.made_up import write_results
from egal_bench.reports.joining import join
from egal_bench.reports.pool_diagnostics import POINTS, pool_diagnostics
from egal_bench.tables.results import load

STRATEGIES = ("random", "egal", "egal-predicted")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The rows of made-up runs with queries 1, 2 and 4, and their diagnostics."""
    out = write_results(tmp_path_factory.mktemp("pool"), strategies=STRATEGIES, seeds=range(3), rounds=4)
    return load(out)["pool"], pool_diagnostics(join([out]), np.random.default_rng(0))


def test_numbers_are_those_of_the_last_recorded_query(results):
    rows, diagnostics = results
    others = rows.query("strategy == 'egal' and round == 4 and not bought and roi_area > 0")
    row = diagnostics.pool.set_index("strategy").loc["egal"]
    assert row.dice_zero == pytest.approx((others.misalignment == 1).mean())
    by_seed = [stats.spearmanr(own.misalignment, own.roi_area).statistic for _, own in others.groupby("seed")]
    assert row.roi_area_correlation == pytest.approx(np.tanh(np.mean(np.arctanh(by_seed))))
    assert (row.seeds, row.samples) == (3, 50)


def test_distances_compare_the_bought_with_the_others(results):
    distances = results[1].distances
    assert sorted(set(distances["round"])) == [1, 2, 4]
    assert (distances[["distance", "distance_bought", "ratio"]] == [2.0, 3.0, 1.5]).all(axis=None)


def test_only_predictions_are_compared_with_the_truth(results):
    rows, diagnostics = results
    assert set(diagnostics.predictions["strategy"]) == {"egal-predicted"}
    others = rows.query("strategy == 'egal-predicted' and round == 2 and not bought and roi_area > 0")
    by_seed = [
        stats.spearmanr(own.misalignment, own.predicted_misalignment).statistic for _, own in others.groupby("seed")
    ]
    row = diagnostics.predictions.set_index("round").loc[2]
    assert row.correlation == pytest.approx(np.tanh(np.mean(np.arctanh(by_seed))))
    assert row.low < row.correlation < row.high


def test_points_are_the_bought_and_a_few_others_of_the_lowest_seed(results):
    points = results[1].points
    assert set(points["seed"]) == {0}
    assert points[points["bought"]].groupby(["strategy", "round"]).size().unique().tolist() == [10]
    assert points[~points["bought"]].groupby(["strategy", "round"]).size().max() <= POINTS


def test_runs_without_the_table_have_no_diagnostics(tmp_path):
    diagnostics = pool_diagnostics(join([write_results(tmp_path, pool=False)]), np.random.default_rng(0))
    assert all(frame.empty for frame in vars(diagnostics).values())


def test_one_seed_has_no_interval_and_no_roi_no_correlation(tmp_path):
    out = write_results(tmp_path, strategies=STRATEGIES, seeds=[0], roi=False)
    diagnostics = pool_diagnostics(join([out]), np.random.default_rng(0))
    assert (diagnostics.pool["without_roi"] == 1).all()
    assert diagnostics.pool[["dice_zero", "roi_area_correlation", "roi_area_correlation_low"]].isna().all(axis=None)
    assert diagnostics.predictions.empty

"""EG-AL with predicted ROIs: the regression against scikit-learn, cells against exact averages, Dice against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from bench.strategies.pools import changed, made_pool, map_stream
from egal_bench.statistics.folds import folds_of
from egal_bench.strategies import find
from egal_bench.strategies.egal_predicted import predicted_misalignment, soft_dice
from egal_bench.strategies.roi_prediction import PENALTIES, cell_shares, fit_roi_model


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_cell_shares_are_exact_averages(height, width, rows, columns, seed):
    roi = np.random.default_rng(seed).random((2, rows, columns)) < 0.4
    # every pixel is repeated until pixels and cells have a common grid
    fine = roi.repeat(height, axis=1).repeat(width, axis=2).reshape(2, height, rows, width, columns)
    np.testing.assert_allclose(cell_shares(roi, height, width), fine.mean(axis=(2, 4)), atol=1e-12)


def labelled_set(samples=24, channels=5, cells=3, seed=0):
    """Return maps, ROIs that follow the first channel, and folds of groups of two."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(loc=2, scale=3, size=(samples, channels, cells, cells)).astype(np.float32)
    noisy = maps[:, 0] + rng.normal(size=(samples, cells, cells))
    roi = (noisy > 3).repeat(4, axis=1).repeat(4, axis=2)
    return maps, roi, folds_of(np.zeros(samples, int), np.arange(samples) // 2)


def ridge(maps, targets, penalty, mean, deviation):
    """Return scikit-learn's weights on standardised features, its penalty as a mean over the cells."""
    z = (np.moveaxis(maps, 1, 3).reshape(-1, maps.shape[1]).astype(np.float64) - mean) / deviation
    return Ridge(alpha=penalty * len(z), fit_intercept=False).fit(z, targets.ravel()).coef_, z


def test_the_model_is_scikit_learns_ridge_with_the_best_held_out_penalty():
    maps, roi, folds = labelled_set()
    shares = cell_shares(roi, 3, 3)
    targets = shares - shares.mean(axis=0)
    cells = np.moveaxis(maps, 1, 3).reshape(-1, maps.shape[1]).astype(np.float64)
    mean, deviation = cells.mean(axis=0), cells.std(axis=0)
    errors = []
    for penalty in PENALTIES:
        error = 0.0
        for fold in np.unique(folds):
            w, _ = ridge(maps[folds != fold], targets[folds != fold], penalty, mean, deviation)
            z = (np.moveaxis(maps[folds == fold], 1, 3).reshape(-1, 5) - mean) / deviation
            error += ((targets[folds == fold].ravel() - z @ w) ** 2).sum()
        errors.append(error)
    w, z = ridge(maps, targets, PENALTIES[int(np.argmin(errors))], mean, deviation)
    model = fit_roi_model([maps[:10], maps[10:11], maps[11:]], roi, folds)
    np.testing.assert_allclose(model.weight * deviation, w, rtol=1e-4, atol=1e-7)
    want = np.clip(shares.mean(axis=0) + (z @ w).reshape(targets.shape), 0, 1)
    np.testing.assert_allclose(model.predict(maps), want, atol=1e-6)


def test_a_feature_that_does_not_vary_is_ignored():
    maps, roi, folds = labelled_set()
    maps[:, 2] = 1234.5
    model = fit_roi_model([maps], roi, folds)
    assert np.isfinite(model.weight).all()
    assert np.corrcoef(model.predict(maps).ravel(), cell_shares(roi, 3, 3).ravel())[0, 1] > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_soft_dice_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    class_maps, shares = rng.normal(size=(6, 2, 3)), rng.random((6, 2, 3))
    shares[4] = 0
    class_maps[5] = -1
    got = soft_dice(class_maps, shares)
    for i in range(6):
        cam = [max(value, 0.0) for value in class_maps[i].ravel()]
        cam = [value / max(cam) if max(cam) else 0.0 for value in cam]
        roi = shares[i].ravel().tolist()
        overlap = sum(c * r for c, r in zip(cam, roi, strict=True))
        want = 2 * overlap / (sum(cam) + sum(roi)) if sum(roi) else float("nan")
        assert got[i] == pytest.approx(want, nan_ok=True)


def predictable_pool():
    """Return a pool whose class maps lie inside the predictable ROI for even samples, outside for odd ones."""
    rng = np.random.default_rng(0)
    inside = rng.random((38, 4, 4)) < 0.25
    inside[:, 0, 0], inside[:, 3, 3] = True, False
    maps = rng.normal(scale=0.1, size=(38, 6, 4, 4)).astype(np.float32)
    maps[:, 1] += 3 * inside
    even = (np.arange(30) % 2 == 0)[:, None, None]
    class_maps = np.where(inside[:30] == even, 1.0, -1.0).astype(np.float32)
    pool = made_pool("egal-predicted")
    roi = inside[30:].repeat(5, axis=1).repeat(5, axis=2)
    private = {
        "labelled_roi": roi, "maps": map_stream(maps[:30], class_maps),
        "labelled_maps": map_stream(maps[30:], class_maps[:8]),
    }  # fmt: skip
    return changed(pool, entropy=np.ones(30), private=private)


def test_it_buys_samples_whose_explanation_misses_the_predicted_roi():
    query = find("egal-predicted")(predictable_pool())
    assert (query.indices % 2 == 1).all()
    predicted = query.terms["predicted_misalignment"]
    assert predicted.shape == (30,)
    assert predicted[1::2].min() > 0.8 > 0.4 > predicted[::2].max()


def test_without_labelled_roi_it_is_entropy():
    pool = made_pool("egal-predicted")
    pool = changed(pool, private={**pool.private, "labelled_roi": np.zeros((8, 10, 10), bool)})
    assert np.isnan(predicted_misalignment(pool)).all()
    query, entropy = find("egal-predicted")(pool), find("entropy")(made_pool("entropy"))
    np.testing.assert_array_equal(query.indices, entropy.indices)


def test_lambda_weighs_the_predicted_misalignment():
    pool = predictable_pool()
    query = find("egal-predicted(lambda=0)")(pool)
    assert query.indices.tolist() == np.argsort(pool.tie_order)[:5].tolist()


def test_the_number_of_threads_changes_nothing():
    rng = np.random.default_rng(0)
    maps, class_maps = rng.normal(size=(120, 300, 7, 7)).astype(np.float32), rng.normal(size=(120, 7, 7))
    pool = made_pool("egal-predicted", n=100, labelled=20)
    private = {
        "labelled_roi": rng.random((20, 28, 28)) < 0.2, "maps": map_stream(maps[:100], class_maps[:100]),
        "labelled_maps": map_stream(maps[100:], class_maps[100:]),
    }  # fmt: skip
    scores = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            scores.append(find("egal-predicted")(changed(pool, private=private)).scores)
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])

"""The frozen regime: a linear head on standardised features, folded so that it acts on the maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.learners import frozen
from egal_bench.learners.frozen import FrozenLearner
from egal_bench.learners.learner import DRAWS
from egal_bench.learners.logistic import logistic_regression
from egal_bench.scoring.features import Features
from egal_kernels import pack_roi

EVERYTHING = {"roi", "features"}


@pytest.fixture
def learner() -> FrozenLearner:
    """A learner on 40 random maps [5, 3, 3] of very different scales; sample 3 has no ROI, channel 4 is constant."""
    rng, n = np.random.default_rng(0), 40
    maps = (rng.gamma(2, size=(n, 5, 3, 3)) * np.array([1e-2, 1, 10, 3, 1])[:, None, None]).astype(np.float16)
    maps[:, 4] = 0.5
    masks = torch.from_numpy(rng.random((n, 24, 24)) < 0.3)
    masks[3] = False
    dataset = SimpleNamespace(
        keys=np.array([f"k{i}" for i in range(n)]),
        labels=rng.integers(0, 3, n),
        pool=np.arange(n - 10),
        classes=3,
        named=lambda i: f"shard-000000.tar, packed from {i}.png: sample 'k{i}'",
        shards=SimpleNamespace(manifest=SimpleNamespace(image=SimpleNamespace(size=24))),
    )
    features = Features(maps, maps.astype(np.float32).mean((2, 3)), pack_roi(masks).bits.numpy())
    return FrozenLearner(dataset, features, Config(l2=0.05))


def test_folded_head_is_the_head_on_standardised_features(learner):
    labelled = np.array([0, 5, 7, 9, 11, 20, 22, 25])
    learner.fit(labelled, 0)
    pooled = learner.cached.maps.astype(np.float64).mean((2, 3))
    deviation = pooled[learner.dataset.pool].std(0)
    deviation[4] = 1.0
    z = (pooled - pooled[learner.dataset.pool].mean(0)) / deviation
    weight, bias = logistic_regression(z[labelled], learner.dataset.labels[labelled], 3, 0.05)
    scores = learner.score(np.arange(40), set())
    np.testing.assert_allclose(scores.logits, z @ weight.T + bias, atol=5e-3)
    p = torch.softmax(torch.from_numpy(scores.logits).double(), 1)
    np.testing.assert_allclose(scores.entropy, torch.special.entr(p).sum(1).numpy(), atol=1e-6)


def test_fit_measures_the_head_on_the_labelled_samples(learner):
    labelled = np.arange(25)
    fit = learner.fit(labelled, 0)
    assert fit.rois.tolist() == []
    assert fit.steps == 0
    logits, labels = learner.score(labelled, set()).logits.astype(np.float64), learner.dataset.labels[labelled]
    assert fit.loss == pytest.approx(log_loss(labels, softmax(logits, axis=1)), rel=1e-3)
    assert fit.accuracy == np.mean(logits.argmax(1) == labels)
    assert 0.3 < fit.accuracy < 1


def test_scores_hold_what_is_needed_and_no_more(learner):
    learner.fit(np.arange(12), 0)
    positions = np.array([30, 3, 8])
    plain, with_roi, with_features, full = (
        learner.score(positions, needs) for needs in (set(), {"roi"}, {"features"}, EVERYTHING)
    )
    for scores in (with_roi, with_features, full):
        np.testing.assert_allclose(scores.logits, plain.logits, atol=1e-5)
    assert [scores.overlap is None for scores in (plain, with_roi, with_features, full)] == [True, False, True, False]
    assert with_roi.overlap.roi_area[1] == 0
    assert np.isnan(with_roi.overlap.dice).tolist() == [False, True, False]
    for scores in (with_features, full):
        np.testing.assert_array_equal(scores.features, learner.cached.pooled[positions])


def test_scores_do_not_depend_on_the_chunks_they_are_read_in(learner, monkeypatch):
    learner.fit(np.arange(12), 0)
    positions = np.random.default_rng(0).permutation(40)
    at_once = learner.score(positions, {"roi"})
    monkeypatch.setattr(frozen, "CHUNK", 7)
    in_chunks = learner.score(positions, {"roi"})
    np.testing.assert_array_equal(in_chunks.logits, at_once.logits)
    np.testing.assert_array_equal(in_chunks.overlap.intersection, at_once.overlap.intersection)
    assert len(np.unique(at_once.logits, axis=0)) == 40


def test_soft_overlap_is_used_where_configured(learner):
    learner.fit(np.arange(12), 0)
    thresholded = learner.score(np.arange(10), {"roi"}).overlap.dice
    learner.config = Config(overlap="soft")
    soft = learner.score(np.arange(10), {"roi"}).overlap.dice
    assert (np.abs(soft - thresholded)[[0, 1, 2, 4, 5]] > 1e-3).any()


@pytest.mark.parametrize("needs", [set(), {"roi"}], ids=["plain", "roi"])
def test_sample_that_is_not_finite_is_named(learner, needs):
    learner.cached.pooled[17] = np.nan
    learner.cached.maps[17] = np.nan
    learner.fit(np.arange(12), 0)
    with pytest.raises(BenchError, match=r"packed from 17.png: sample 'k17': the network's output is NaN"):
        learner.score(np.arange(40), needs)


def test_draws_are_heads_of_scikit_learn_on_bootstrap_resamples(learner):
    labelled = np.arange(28)
    learner.fit(labelled, 0)
    draws = learner.draws(learner.cached.pooled, np.random.default_rng(5))
    assert draws.shape == (40, DRAWS, 3)
    z = (learner.cached.pooled - learner.mean) / learner.scale
    rng, labels = np.random.default_rng(5), learner.dataset.labels[labelled]
    for t in range(3):
        rows = rng.integers(0, 28, 28)
        peer = LogisticRegression(C=1 / (0.05 * 28), tol=1e-10, max_iter=10_000).fit(z[rows], labels[rows])
        np.testing.assert_allclose(softmax(draws[:, t], axis=1), peer.predict_proba(z), atol=1e-4)


def test_draws_survive_a_resample_without_some_class(learner):
    learner.fit(np.arange(4), 0)
    draws = learner.draws(learner.cached.pooled, np.random.default_rng(0))
    assert np.isfinite(draws).all()


def test_maps_are_the_cached_ones_with_the_class_map_of_the_prediction(learner, monkeypatch):
    monkeypatch.setattr(frozen, "CHUNK", 7)
    learner.fit(np.arange(20), 0)
    positions = np.array([39, 3, 17, 5, 8, 21, 30, 2, 1])
    batches = list(learner.maps(positions))
    maps, class_maps = (np.concatenate([getattr(b, name) for b in batches]) for name in ("maps", "class_maps"))
    np.testing.assert_array_equal(maps, learner.cached.maps[positions].astype(np.float32))
    predicted = learner.score(positions, set()).logits.argmax(1)
    want = np.einsum("bc,bchw->bhw", learner.weight[predicted].astype(float), maps.astype(float)) / 9
    np.testing.assert_allclose(class_maps, want, rtol=1e-4, atol=1e-6)

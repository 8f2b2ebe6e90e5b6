"""The frozen regime's linear head against scikit-learn, and its folding of the standardisation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from egal_bench import frozen
from egal_bench.config import Config
from egal_bench.features import Features
from egal_bench.frozen import FrozenLearner, logistic_regression
from egal_kernels import pack_roi


def problem(seed: int, n: int, channels: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, channels)) + np.eye(classes, channels)[labels], labels


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 999), st.integers(8, 60), st.integers(4, 90), st.integers(3, 5), st.sampled_from([0.01, 0.1, 1.0])
)
def test_head_is_scikit_learns_logistic_regression(seed, n, channels, classes, l2):
    x, labels = problem(seed, n, channels, classes)
    labels[:classes] = np.arange(classes)  # scikit-learn leaves out absent classes
    weight, bias = logistic_regression(x, labels, classes, l2)
    theirs = LogisticRegression(C=1 / (n * l2), tol=1e-10, max_iter=20_000).fit(x, labels)
    p = torch.softmax(torch.from_numpy(x @ weight.T + bias), 1).numpy()
    np.testing.assert_allclose(weight, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(p, theirs.predict_proba(x), atol=1e-3)


def test_a_class_without_labels_stays_improbable():
    x, labels = problem(0, 40, 6, 2)
    weight, bias = logistic_regression(x, labels, 3, 0.01)
    p = torch.softmax(torch.from_numpy(x @ weight.T + bias), 1).numpy()
    assert p[:, 2].max() < 0.05


def learner(seed: int = 0, n: int = 40) -> tuple[FrozenLearner, np.ndarray]:
    """A learner on random maps [n, 5, 3, 3] with very different scales, and the maps."""
    rng = np.random.default_rng(seed)
    maps = (rng.gamma(2, size=(n, 5, 3, 3)) * np.array([1e-2, 1, 10, 3, 1])[:, None, None]).astype(np.float16)
    maps[:, 4] = 0.5  # a constant channel
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
    cached = Features(maps, maps.astype(np.float32).mean((2, 3)), pack_roi(masks).bits.numpy())
    return FrozenLearner(dataset, cached, Config(l2=0.05)), maps.astype(np.float64)


def test_folded_head_is_the_head_on_standardised_features():
    made, maps = learner()
    labelled = np.array([0, 5, 7, 9, 11, 20, 22, 25])
    made.fit(labelled, 0)
    pooled = maps.mean((2, 3))
    spread = pooled[made.dataset.pool].std(0)
    spread[4] = 1.0
    z = (pooled - pooled[made.dataset.pool].mean(0)) / spread
    weight, bias = logistic_regression(z[labelled], made.dataset.labels[labelled], 3, 0.05)
    got = made.score(np.arange(40), overlap=False)
    np.testing.assert_allclose(got.logits, z @ weight.T + bias, atol=5e-3)
    p = torch.softmax(torch.from_numpy(got.logits).double(), 1)
    np.testing.assert_allclose(got.entropy, torch.special.entr(p).sum(1).numpy(), atol=1e-6)


def test_both_ways_to_score_give_the_same_logits_and_only_one_looks_at_rois():
    made, _ = learner()
    made.fit(np.arange(12), 0)
    positions = np.array([30, 3, 8])
    cheap, full = made.score(positions, overlap=False), made.score(positions, overlap=True)
    np.testing.assert_allclose(cheap.logits, full.logits, atol=1e-5)
    assert cheap.overlap is None
    assert full.overlap.roi_area[1] == 0
    assert np.isnan(full.overlap.dice).tolist() == [False, True, False]


def test_scores_do_not_depend_on_the_chunks_they_are_read_in(monkeypatch):
    made, _ = learner()
    made.fit(np.arange(12), 0)
    positions = np.random.default_rng(0).permutation(40)
    whole = made.score(positions, overlap=True)
    monkeypatch.setattr(frozen, "CHUNK", 7)
    parts = made.score(positions, overlap=True)
    np.testing.assert_array_equal(parts.logits, whole.logits)
    np.testing.assert_array_equal(parts.overlap.intersection, whole.overlap.intersection)
    assert len(np.unique(whole.logits, axis=0)) == 40


def test_soft_overlap_is_used_where_configured():
    made, _ = learner()
    made.fit(np.arange(12), 0)
    thresholded = made.score(np.arange(10), overlap=True).overlap.dice
    made.config = Config(overlap="soft")
    soft = made.score(np.arange(10), overlap=True).overlap.dice
    assert (np.abs(soft - thresholded)[[0, 1, 2, 4, 5]] > 1e-3).any()


def test_a_sample_that_is_not_finite_is_named():
    made, _ = learner()
    made.cached.pooled[17] = np.nan
    made.cached.maps[17] = np.nan
    made.fit(np.arange(12), 0)
    for overlap in (False, True):
        with pytest.raises(ValueError, match=r"packed from 17.png: sample 'k17': the network's output is NaN"):
            made.score(np.arange(40), overlap=overlap)

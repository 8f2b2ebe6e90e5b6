"""BADGE against the whole matrix of gradient embeddings, and against scikit-activeml with the same uniform numbers."""

import numpy as np
import pytest
import torch

NUMBERS = np.random.default_rng(5).random(40)


def embeddings(pool):
    """Return the gradients of the NLL of the predicted class by autograd, float64 [N, K·C]."""
    rows = []
    for features, p in zip(pool.features.astype(float), pool.probabilities.astype(float), strict=True):
        weight = torch.zeros(len(p), len(features), dtype=torch.float64, requires_grad=True)
        # logits that the bias alone decides, so that the gradient of the weight is the embedding
        logits = weight @ torch.from_numpy(features) + torch.from_numpy(np.log(p))
        torch.nn.functional.cross_entropy(logits[None], torch.tensor([p.argmax()])).backward()
        rows.append(weight.grad.flatten().numpy())
    return np.array(rows)


def by_loop(embedded, order, budget, numbers):
    """Return the centres of k-means++ whose first centre is the longest embedding; draws go through `order`."""
    chosen = [int((embedded**2).sum(1).argmax())]
    for u in numbers[: budget - 1]:
        weights = [min(((embedded[i] - embedded[c]) ** 2).sum() for c in chosen) for i in order]
        target, total, place = u * sum(weights), 0.0, 0
        while total + weights[place] <= target:
            total, place = total + weights[place], place + 1
        chosen.append(int(order[place]))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_badge_is_k_means_plus_plus_on_the_gradients(make, uniforms, seed):
    strategy, pool = make("badge", seed=seed, rng=uniforms(NUMBERS))
    query = strategy(pool)
    embedded = embeddings(pool)
    assert query.indices.tolist() == by_loop(embedded, np.argsort(pool.tie_order), pool.budget, NUMBERS)
    for rank in range(1, pool.budget):
        apart = ((embedded[query.indices[rank]] - embedded[query.indices[:rank]]) ** 2).sum(1).min()
        np.testing.assert_allclose(query.scores[rank], apart, rtol=1e-6)
    np.testing.assert_allclose(query.scores[0], (embedded**2).sum(1).max(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_badge_is_scikit_activemls_with_the_same_uniforms(make, uniforms, monkeypatch, seed):
    peer = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed (extra `peers`)")
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import _badge

    strategy, pool = make("badge", n=50, seed=seed, tie_order=np.arange(50), rng=uniforms(NUMBERS))

    class Fixed(SkactivemlClassifier):
        def fit(self, x, y, sample_weight=None):
            return self

        def predict_proba(self, x):
            return pool.probabilities.astype(float)

    class Injected(np.random.RandomState):
        def __init__(self):
            super().__init__(0)
            self.numbers = iter(NUMBERS)

        def choice(self, size, number, replace, p):
            return np.searchsorted(np.cumsum(p), [next(self.numbers) * p.sum()], side="right")

    injected, calls = Injected(), []
    distances = _badge._d_2

    def without_origin(embedded, centres, latest=None):
        """Start the distances at the first centre; theirs count the origin as one more, unlike the authors' code."""
        calls.append(centres)
        return distances(embedded, centres, np.full(len(embedded), np.inf) if len(calls) == 2 else latest)

    monkeypatch.setattr(_badge, "_d_2", without_origin)
    monkeypatch.setattr(
        peer.Badge, "random_state_", property(lambda self: injected, lambda self, value: None), raising=False
    )
    theirs = peer.Badge(missing_label=-1).query(
        pool.features.astype(float), np.full(50, -1), Fixed(classes=[0, 1, 2], missing_label=-1), fit_clf=False,
        batch_size=pool.budget,
    )  # fmt: skip
    assert strategy(pool).indices.tolist() == [int(i) for i in theirs]


def test_badge_never_draws_a_copy_while_others_are_left(make):
    features = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)[np.arange(40) % 5]
    logits = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)[np.arange(40) % 5]
    strategy, pool = make("badge", features=features, logits=logits, budget=12)
    query = strategy(pool)
    assert set(query.indices[:5] % 5) == set(range(5))
    assert query.scores[5:].tolist() == [0.0] * 7


def test_badge_with_a_zero_total_draws_the_rest_uniformly(make, uniforms):
    features, logits = np.ones((10, 4), np.float32), np.zeros((10, 3), np.float32)
    strategy, pool = make(
        "badge", n=10, features=features, logits=logits, budget=3, tie_order=np.arange(10), rng=uniforms([0.5, 0.999])
    )
    assert strategy(pool).indices.tolist() == [0, 5, 9]  # of 1…9 the fifth, of 1…4, 6…9 the last

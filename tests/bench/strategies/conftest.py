"""Pools of synthetic samples, as strategies see them."""

import numpy as np
import pytest

from bench.strategies.pools import PIXELS, map_stream, random_maps
from egal_bench.config import Config
from egal_bench.strategies import Overlap, Pool, find

CHANNELS = 6


class Uniforms:
    """A random generator whose uniform numbers are injected; everything else it refuses."""

    def __init__(self, numbers):
        self._numbers = iter(numbers)

    def random(self):
        return next(self._numbers)


def synthetic(
    specification, n=40, labelled=6, budget=8, classes=3, seed=0, features=None, labelled_features=None, logits=None,
    draws=None, labels=None, labelled_labels=None, dice=None, roi_area=None, tie_order=None, rng=None, threads=1,
):  # fmt: skip
    """Return (strategy, pool) of n random samples; every array can be replaced."""
    source = np.random.default_rng(seed)
    config = Config.model_validate({"threads": threads})
    bound = find(specification, config)
    features = source.normal(size=(n, CHANNELS)).astype(np.float32) if features is None else features
    if labelled_features is None:
        labelled_features = source.normal(size=(labelled, features.shape[1])).astype(np.float32)
    logits = source.normal(scale=2, size=(n, classes)).astype(np.float32) if logits is None else logits
    area = source.integers(1, 500, n) if roi_area is None else roi_area
    p = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
    p /= p.sum(1, keepdims=True)
    private = {
        "overlap": Overlap(area, area, area, source.random(n) if dice is None else dice),
        "features": features, "labelled_features": labelled_features,
        "draws": source.normal(size=(n, 5, classes)) if draws is None else draws,
        "labels": source.integers(0, classes, n) if labels is None else labels,
        "labelled_roi": np.random.default_rng([seed, 3]).random((len(labelled_features), PIXELS, PIXELS)) < 0.3,
        "maps": map_stream(*random_maps(np.random.default_rng([seed, 1]), n)),
        "labelled_maps": map_stream(*random_maps(np.random.default_rng([seed, 2]), len(labelled_features))),
    }  # fmt: skip
    pool = Pool(
        keys=np.array([f"k{i:05}" for i in range(n)]), logits=logits,
        entropy=-(p * np.log(np.maximum(p, 1e-300))).sum(1),
        labelled_keys=np.array([f"l{i:05}" for i in range(len(labelled_features))]),
        labelled_labels=source.integers(0, classes, len(labelled_features))
        if labelled_labels is None else labelled_labels,
        labelled_groups=np.array([f"h{i}" for i in range(len(labelled_features))]),
        groups=np.full(n, ""), classes=tuple("abcdefgh"[:classes]), round=1, budget=budget,
        rng=np.random.default_rng(11) if rng is None else rng,
        tie_order=np.random.default_rng(12).permutation(n) if tie_order is None else tie_order,
        config=config, needs=bound.needs, name=bound.name, private=private,
    )  # fmt: skip
    return bound, pool


@pytest.fixture(scope="session")
def make():
    """Return `synthetic`."""
    return synthetic


@pytest.fixture(scope="session")
def uniforms():
    """Return the class of generators with injected uniform numbers."""
    return Uniforms

"""The frozen regime: in each round a linear head on standardised pooled features, trained to convergence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.learners.learner import DRAWS, Fit
from egal_bench.learners.logistic import log_probabilities, logistic_regression
from egal_bench.learners.penalty import chosen_penalty
from egal_bench.models.heads import Head, LinearHead
from egal_bench.models.network import of_config
from egal_bench.models.saving import network_file
from egal_bench.models.weights import load
from egal_bench.scoring.class_maps import ClassMaps, class_maps_of
from egal_bench.scoring.features import Features
from egal_bench.scoring.pool_pass import explained_by
from egal_bench.scoring.scores import Scores, as_rows, check_finite, scores_of
from egal_bench.strategies.pool import MapBatch
from egal_kernels import Acquisition, PackedRoi

FROZEN_SEED = 0  # a frozen trunk without weights is the same for every seed, so that its features are computed once
ALIKE = 1e-6  # deviation of a feature that does not vary; its scale is 1
CHUNK = 64  # rows copied from the memory maps at a time


class FrozenLearner:
    """Fits and scores with cached features. The convex problem has one solution, so no seed enters."""

    def __init__(self, dataset: Dataset, features: Features, config: Config) -> None:
        self.dataset, self.cached, self.config = dataset, features, config
        self.mean, deviation = _moments(features.pooled, np.sort(dataset.pool))
        varies = deviation > ALIKE
        if not varies.any():
            raise BenchError(
                f"{dataset.name}: the features of all {len(dataset.pool)} samples in the pool are alike, so nothing "
                "can be learnt from them: check the images, --backbone and --weights"
            )
        self.scale = np.where(varies, deviation, 1.0)
        self.weight = np.zeros((dataset.classes, len(self.mean)), np.float32)
        self.bias = np.zeros(dataset.classes, np.float32)
        self._fitted = np.zeros((0, len(self.mean))), np.zeros(0, np.int64), 1.0  # what the last fit has used

    def fit(self, labelled: np.ndarray, round_: int) -> Fit:
        """Train the head on the samples at `labelled`, from zero; no ROI is used."""
        x, labels = (self.cached.pooled[labelled] - self.mean) / self.scale, self.dataset.labels[labelled]
        l2 = self.config.l2
        if l2 == "auto":
            l2 = chosen_penalty(x, labels, self.dataset.groups[labelled])
        self._fitted = x, labels, l2
        weight, bias = logistic_regression(x, labels, self.dataset.classes, l2)
        log_p = log_probabilities(x, weight, bias)
        weight = weight / self.scale  # the same head on features that are not standardised
        self.weight, self.bias = weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32)
        right = log_p.argmax(axis=1) == labels
        return Fit(labelled[:0], float(-log_p[np.arange(len(labels)), labels].mean()), float(right.mean()), steps=0)

    def score(self, positions: np.ndarray, needs: Collection[str], roi_of: np.ndarray | None = None) -> Scores:
        """Return the Scores of the samples at `positions`; maps and ROIs are read only for "roi".

        The ROIs are those of the samples at `roi_of`, where it is given.
        """
        columns: dict[str, np.ndarray] = {}
        if "roi" in needs:
            columns["rows"] = np.concatenate([as_rows(part).numpy() for part in self._acquire(positions, roi_of)])
        if "features" in needs or "roi" not in needs:
            columns["features"] = self.cached.pooled[positions]
        if "roi" not in needs:
            columns["logits"] = self._logits(columns["features"])
        scores = scores_of(columns, soft=self.config.overlap == "soft")
        check_finite(scores, positions, self.dataset.named)
        return scores

    def draws(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the logits of DRAWS heads, float32 [N, T, K], for pooled features float32 [N, C].

        Each head is fitted to a bootstrap resample, drawn from `rng`, of the samples that `fit` had last.
        """
        x, labels, l2 = self._fitted
        weights, biases = [], []
        for _ in range(DRAWS):
            rows = rng.integers(0, len(labels), len(labels))
            weight, bias = logistic_regression(x[rows], labels[rows], self.dataset.classes, l2)
            weights.append(weight / self.scale)
            biases.append(bias - weights[-1] @ self.mean)
        weight, bias = np.concatenate(weights).astype(np.float32), np.concatenate(biases).astype(np.float32)
        return (features @ weight.T + bias).reshape(len(features), DRAWS, self.dataset.classes)

    def maps(self, positions: np.ndarray) -> Iterator[MapBatch]:
        """Yield the cached feature maps of the samples at `positions` with their class maps."""
        head = self._head()
        for start in range(0, len(positions), CHUNK):
            maps = self.cached.maps[positions[start : start + CHUNK]].astype(np.float32)
            with torch.no_grad():
                yield MapBatch(maps, class_maps_of(head, torch.from_numpy(maps))["maps"].numpy())

    def class_maps(self, positions: np.ndarray) -> ClassMaps:
        """Return the class maps of the samples at `positions`, from the cached feature maps."""
        with torch.no_grad():
            parts = class_maps_of(self._head(), torch.from_numpy(self.cached.maps[positions]))
        return ClassMaps(parts["maps"].numpy(), parts["predicted"].numpy())

    def state(self) -> dict[str, bytes]:
        """Return {}: each round fits the head from zero."""
        return {}

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Do nothing: each round fits the head from zero."""

    def network_file(self) -> dict[str, bytes]:
        """Return the trunk with the present head as {"network.safetensors": content}."""
        weights, _ = load(self.config.weights, self.config.backbone)
        network = of_config(self.config, self.dataset, FROZEN_SEED, weights)
        network.head = self._head()
        return {"network.safetensors": network_file(network, self.dataset, self.config)}

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits, float32 [N, K], of pooled features, float32 [N, C]."""
        return features @ self.weight.T + self.bias

    def _head(self) -> Head:
        """Return the present head as a module."""
        head = LinearHead(self.weight.shape[1], self.weight.shape[0])
        head.load_state_dict({"weight": torch.from_numpy(self.weight), "bias": torch.from_numpy(self.bias)})
        return head

    def _acquire(self, positions: np.ndarray, roi_of: np.ndarray | None) -> Iterator[Acquisition]:
        head = self._head()
        height = self.dataset.shards.manifest.image.size
        # one buffer for all chunks: fresh memory would cost more than the copy
        buffer = np.empty((CHUNK, *self.cached.maps.shape[1:]), self.cached.maps.dtype)
        for start in range(0, len(positions), CHUNK):
            rows = positions[start : start + CHUNK]
            roi_rows = rows if roi_of is None else roi_of[start : start + CHUNK]
            # mode="clip", since "raise" copies twice
            maps = np.take(self.cached.maps, rows, axis=0, out=buffer[: len(rows)], mode="clip")
            roi = PackedRoi(torch.from_numpy(self.cached.roi[roi_rows]), height)
            with torch.no_grad():
                yield explained_by(head, torch.from_numpy(maps), roi, self.config)


def _moments(pooled: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the pool's features, [C].

    No label enters, so every strategy shares them.
    """
    total = squares = np.zeros(pooled.shape[1])
    for start in range(0, len(pool), 4096):
        rows = pooled[pool[start : start + 4096]].astype(np.float64)
        total, squares = total + rows.sum(axis=0), squares + (rows * rows).sum(axis=0)
    mean = total / len(pool)
    return mean, np.sqrt(np.maximum(squares / len(pool) - mean * mean, 0.0))

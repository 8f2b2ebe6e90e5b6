"""The frozen regime: in each round a linear head on standardised pooled features, trained to convergence."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.learners.logistic import logistic_regression
from egal_bench.scoring.features import Features
from egal_bench.scoring.scores import Scores, as_rows, check_finite, scores_of
from egal_kernels import Acquisition, PackedRoi, acquire

CHUNK = 64  # rows copied from the memory maps at a time


class FrozenLearner:
    """Fits and scores with cached features. The convex problem has one solution, so no seed enters."""

    def __init__(self, dataset: Dataset, features: Features, config: Config) -> None:
        self.dataset, self.cached, self.config = dataset, features, config
        self.mean, self.scale = _moments(features.pooled, np.sort(dataset.pool))
        self.weight = np.zeros((dataset.classes, len(self.mean)), np.float32)
        self.bias = np.zeros(dataset.classes, np.float32)

    def fit(self, labelled: np.ndarray, round_: int) -> np.ndarray:
        """Train the head on the samples at `labelled`, from zero; return no position, since no ROI is used."""
        x = (self.cached.pooled[labelled] - self.mean) / self.scale
        weight, bias = logistic_regression(x, self.dataset.labels[labelled], self.dataset.classes, self.config.l2)
        weight = weight / self.scale  # the same head on features that are not standardised
        self.weight, self.bias = weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32)
        return labelled[:0]

    def score(self, positions: np.ndarray, needs: Collection[str]) -> Scores:
        """Return the Scores of the samples at `positions`; maps and ROIs are read only for "roi"."""
        columns: dict[str, np.ndarray] = {}
        if "roi" in needs:
            columns["rows"] = np.concatenate([as_rows(part).numpy() for part in self._acquire(positions)])
        if "features" in needs or "roi" not in needs:
            columns["features"] = self.cached.pooled[positions]
        if "roi" not in needs:
            columns["logits"] = columns["features"] @ self.weight.T + self.bias
        scores = scores_of(columns, soft=self.config.overlap == "soft")
        check_finite(scores, positions, self.dataset.named)
        return scores

    def _acquire(self, positions: np.ndarray) -> Iterator[Acquisition]:
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        height = self.dataset.shards.manifest.image.size
        # one buffer for all chunks: fresh memory would cost more than the copy
        buffer = np.empty((CHUNK, *self.cached.maps.shape[1:]), self.cached.maps.dtype)
        for start in range(0, len(positions), CHUNK):
            rows = positions[start : start + CHUNK]
            # mode="clip", since "raise" copies twice
            maps = np.take(self.cached.maps, rows, axis=0, out=buffer[: len(rows)], mode="clip")
            roi = PackedRoi(torch.from_numpy(self.cached.roi[rows]), height)
            yield acquire(
                torch.from_numpy(maps), weight, bias, roi,
                threshold=self.config.threshold, convention=self.config.explain_convention,
            )  # fmt: skip


def _moments(pooled: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the pool's features, [C].

    No label enters, so every strategy shares them. A feature that does not vary gets the deviation 1.
    """
    total = squares = np.zeros(pooled.shape[1])
    for start in range(0, len(pool), 4096):
        rows = pooled[pool[start : start + 4096]].astype(np.float64)
        total, squares = total + rows.sum(axis=0), squares + (rows * rows).sum(axis=0)
    mean = total / len(pool)
    deviation = np.sqrt(np.maximum(squares / len(pool) - mean * mean, 0.0))
    return mean, np.where(deviation > 1e-6, deviation, 1.0)

"""The frozen regime: in each round a linear head on standardised pooled features, trained to convergence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.features import Features
from egal_bench.scores import Scores, as_rows, check_finite, of_columns
from egal_kernels import Acquisition, PackedRoi, acquire

CHUNK = 64  # rows copied from the memory maps at a time
CORRECTIONS = 20  # gradients that L-BFGS remembers: fewer take more steps, more make each step dearer


class FrozenLearner:
    """Fits and scores with cached features; the convex problem has one solution, so no seed enters."""

    def __init__(self, dataset: Dataset, features: Features, config: Config) -> None:
        self.dataset, self.cached, self.config = dataset, features, config
        self.mean, self.scale = _moments(features.pooled, np.sort(dataset.pool))
        self.weight = np.zeros((dataset.classes, len(self.mean)), np.float32)
        self.bias = np.zeros(dataset.classes, np.float32)

    def fit(self, labelled: np.ndarray, round_: int) -> np.ndarray:
        """Train the head on the samples at positions `labelled`, from zero; it looks at no ROI: returns no position."""
        x = (self.cached.pooled[labelled] - self.mean) / self.scale
        weight, bias = logistic_regression(x, self.dataset.labels[labelled], self.dataset.classes, self.config.l2)
        weight = weight / self.scale  # folded: the same head on features that are not standardised
        self.weight, self.bias = weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32)
        return labelled[:0]

    def score(self, positions: np.ndarray, *, overlap: bool, features: bool = False) -> Scores:
        """Scores of the samples at `positions`; the maps and ROIs are read only for their overlap."""
        found: dict[str, np.ndarray] = {}
        if overlap:
            found["rows"] = np.concatenate([as_rows(out).numpy() for out in self._acquire(positions)])
        if features or not overlap:
            found["features"] = self.cached.pooled[positions]
        if not overlap:
            found["logits"] = found["features"] @ self.weight.T + self.bias
        scores = of_columns(found, soft=self.config.overlap == "soft")
        check_finite(scores, positions, self.dataset.named)
        return scores

    def _acquire(self, positions: np.ndarray) -> Iterator[Acquisition]:
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        height = self.dataset.shards.manifest.image.size
        shape, dtype = (CHUNK, *self.cached.maps.shape[1:]), self.cached.maps.dtype
        copied = np.empty(shape, dtype)  # once: fresh memory would cost more than the copy
        for start in range(0, len(positions), CHUNK):
            rows = positions[start : start + CHUNK]
            maps = np.take(self.cached.maps, rows, axis=0, out=copied[: len(rows)], mode="clip")  # "raise" copies twice
            roi = PackedRoi(torch.from_numpy(self.cached.roi[rows]), height)
            yield acquire(
                torch.from_numpy(maps), weight, bias, roi,
                threshold=self.config.threshold, convention=self.config.explain_convention,
            )  # fmt: skip


def logistic_regression(x: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight [K, C] and bias [K] that minimise mean NLL + l2/2·|W|²; float64, L-BFGS from zero to convergence.

    Args:
        x: float [N, C]. labels: int [N]; a class without samples keeps a low probability.

    The minimum lies in the span of the samples (representer theorem): W = c·X. With the Gram matrix XXᵀ = LLᵀ and
    v = c·L, the scores are v·Lᵀ and |W| = |v|: the same problem with min(N, C) features instead of C.
    """
    x = np.asarray(x, np.float64)
    if len(x) >= x.shape[1]:
        return _minimise(x, labels, classes, l2)
    gram = x @ x.T
    gram[np.diag_indices_from(gram)] += 1e-12 * gram.trace()  # copies of a sample make it singular
    lower = np.linalg.cholesky(gram)
    v, bias = _minimise(lower, labels, classes, l2)
    return solve_triangular(lower, v.T, lower=True, trans="T").T @ x, bias


def _minimise(x: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    one_hot = np.eye(classes)[:, labels]  # [K, N]: with classes first, products and sums run along the rows of memory
    transposed = np.ascontiguousarray(x.T)
    shape = (classes, x.shape[1] + 1)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat.reshape(shape)[:, :-1], flat.reshape(shape)[:, -1:]
        z = w @ transposed + b  # [K, N]
        z -= z.max(axis=0)
        exp = np.exp(z)
        total = exp.sum(axis=0)
        error = (exp / total - one_hot) / len(x)
        gradient = np.hstack([error @ x + l2 * w, error.sum(axis=1, keepdims=True)])
        nll = (np.log(total).sum() - (one_hot * z).sum()) / len(x)
        return nll + l2 / 2 * (w * w).sum(), gradient.ravel()

    options = {"maxiter": 5000, "maxcor": CORRECTIONS, "gtol": 1e-7, "ftol": 0.0}
    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    if not found.success:
        raise BenchError(f"the linear head did not converge ({found.message}); raise --l2")
    solved = found.x.reshape(shape)
    return solved[:, :-1], solved[:, -1]


def _moments(pooled: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the pool's features, [C]: no label enters, so every strategy shares them."""
    total = squares = np.zeros(pooled.shape[1])
    for start in range(0, len(pool), 4096):
        rows = pooled[pool[start : start + 4096]].astype(np.float64)
        total, squares = total + rows.sum(axis=0), squares + (rows * rows).sum(axis=0)
    mean = total / len(pool)
    deviation = np.sqrt(np.maximum(squares / len(pool) - mean * mean, 0.0))
    return mean, np.where(deviation > 1e-6, deviation, 1.0)

"""ROIs predicted from labelled ROIs: ridge regression from the features of each cell of the feature map.

The target is the share of a cell that lies inside the ROI. The mean labelled ROI is the prior, so that the regression
explains only what differs from it: share = prior[cell] + wᵀz, where z are the standardised features of the cell. The
penalty is chosen by cross-validation over the labelled samples, whole groups (patients) at a time. Only sums over cells
are kept, so memory does not grow with the number of labelled samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.linalg import cho_factor, cho_solve

PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)  # of |w|² beside the mean squared error, for features of variance 1
PATIENCE = 2  # penalties in a row without a lower error, after which weaker ones are not tried
ALIKE = 1e-12  # variance, relative to the mean square, below which a feature does not vary


@dataclass(frozen=True, eq=False)
class RoiModel:
    """Predicts the share of each cell inside the ROI as clip(`prior` + `weight`ᵀ(features − `mean`), 0, 1).

    Attributes:
        prior: float64 [h, w], the mean of the labelled ROIs.
        weight: float64 [C].
        mean: float64 [C].
    """

    prior: np.ndarray
    weight: np.ndarray
    mean: np.ndarray

    def predict(self, maps: np.ndarray) -> np.ndarray:
        """Return the predicted shares, float64 [B, h, w], of feature maps [B, C, h, w]."""
        cells = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
        # one product per sample, so that its result does not depend on the batch
        explained = np.matmul(self.weight, cells) - self.mean @ self.weight
        return np.clip(self.prior + explained.reshape(len(maps), *self.prior.shape), 0.0, 1.0)


def cell_shares(roi: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the share of each cell of a grid [height, width] inside the ROI, float64 [N, height, width].

    Args:
        roi: bool [N, H, W]; pixels on the border of two cells count for both, by area.
        height: cells along y.
        width: cells along x.
    """
    rows, columns = _averages(roi.shape[1], height), _averages(roi.shape[2], width)
    return np.stack([rows @ mask.astype(np.float64) @ columns.T for mask in roi])


def fit_roi_model(maps: Iterable[np.ndarray], roi: np.ndarray, folds: np.ndarray) -> RoiModel:
    """Return the RoiModel of L labelled samples.

    Args:
        maps: batches of feature maps, float32 [B, C, h, w], of all L samples in order.
        roi: bool [L, H, W].
        folds: int [L], the fold of each sample in the cross-validation.
    """
    maps = iter(maps)
    first = next(maps)
    shares = cell_shares(roi, *first.shape[2:])
    prior = shares.mean(axis=0)
    sums = _sums_by_fold(chain([first], maps), shares - prior, folds)
    total = _total(sums.values())
    mean, deviation = total.moments()
    weight = _solution(*total.standardised(mean, deviation), _chosen_penalty(sums, mean, deviation))
    return RoiModel(prior, weight / deviation, mean)


@dataclass(eq=False)
class _Sums:
    """Sums over cells: of features x [C] and targets y, from which every ridge regression follows."""

    cells: int
    x: np.ndarray  # Σ x, [C]
    xx: np.ndarray  # Σ x·xᵀ, [C, C]
    y: float
    xy: np.ndarray  # Σ x·y, [C]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the standard deviation of each feature, [C]; 1 where the feature does not vary."""
        mean, square = self.x / self.cells, np.diag(self.xx) / self.cells
        variance = square - mean * mean
        return mean, np.sqrt(np.where(variance > ALIKE * square, variance, 1.0))

    def standardised(self, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of z·zᵀ [C, C] and of z·y [C], where z = (x − mean) / deviation."""
        scale = 1 / deviation
        zz = self.xx * scale[:, None]
        zz *= scale
        shift, total = mean * scale, self.x * scale
        cross = np.outer(total, shift)
        zz += self.cells * np.outer(shift, shift) - cross - cross.T
        return zz / self.cells, (self.xy - mean * self.y) * scale / self.cells


def _solution(zz: np.ndarray, zy: np.ndarray, penalty: float) -> np.ndarray:
    """Return the w [C] that minimises the mean of (y − wᵀz)², plus penalty·|w|²; see `_Sums.standardised`."""
    penalised = zz.copy()
    penalised[np.diag_indices_from(penalised)] += penalty
    return cho_solve(cho_factor(penalised, lower=True, overwrite_a=True), zy)


def _chosen_penalty(sums: dict[int, _Sums], mean: np.ndarray, deviation: np.ndarray) -> float:
    """Return the penalty whose regressions predict held-out cells best; the largest one for a single fold."""
    if len(sums) < 2:
        return PENALTIES[0]
    splits = [
        (
            _total(part for other, part in sums.items() if other != fold).standardised(mean, deviation),
            held_out.standardised(mean, deviation),
            held_out.cells,
        )
        for fold, held_out in sums.items()
    ]
    errors: list[float] = []
    for penalty in PENALTIES:
        error = 0.0
        for fitted, (zz, zy), cells in splits:
            w = _solution(*fitted, penalty)
            error += cells * float(w @ zz @ w - 2 * w @ zy)  # the squared error, but for Σ y², which no w changes
        errors.append(error)
        if len(errors) - 1 - int(np.argmin(errors)) >= PATIENCE:
            break
    return PENALTIES[int(np.argmin(errors))]


def _sums_by_fold(maps: Iterable[np.ndarray], targets: np.ndarray, folds: np.ndarray) -> dict[int, _Sums]:
    """Return the sums over the cells of each fold; `targets` is float64 [L, h, w]."""
    sums: dict[int, _Sums] = {}
    start = 0
    for batch in maps:
        rows = slice(start, start + len(batch))
        start = rows.stop
        for fold in np.unique(folds[rows]):
            members = folds[rows] == fold
            x = np.moveaxis(batch[members], 1, 3).reshape(-1, batch.shape[1])  # [cells, C]
            y = targets[rows][members].ravel()
            # products of one batch in float32, which takes half the time; the sums over batches in float64
            part = _Sums(len(y), x.sum(0, dtype=np.float64), (x.T @ x).astype(np.float64), float(y.sum()),
                         x.T.astype(np.float64) @ y)  # fmt: skip
            sums[int(fold)] = _total([sums[int(fold)], part]) if int(fold) in sums else part
    return sums


def _total(parts: Iterable[_Sums]) -> _Sums:
    """Return the sums over all parts."""
    first, *others = parts
    total = _Sums(first.cells, first.x.copy(), first.xx.copy(), first.y, first.xy.copy())
    for part in others:
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(part, name))
    return total


def _averages(pixels: int, cells: int) -> np.ndarray:
    """Return the matrix [cells, pixels] that averages pixels over cells of equal length, by overlap."""
    edges = np.arange(cells + 1) * pixels / cells
    starts = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.maximum(overlap, 0.0) * cells / pixels

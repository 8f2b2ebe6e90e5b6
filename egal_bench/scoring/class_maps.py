"""Class maps at the resolution of the features, for galleries: what Grad-CAM is before it is normalised and resized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.models.heads import Head
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_bench.scoring.batches import steps_over
from egal_bench.strategies.pool import MapBatch
from egal_kernels import PackedRoi


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """The maps of n samples.

    Attributes:
        maps: float32 [n, h, w], Σ_c alpha_c·A_c of the predicted class; Grad-CAM is its positive part.
        predicted: int64 [n].
    """

    maps: np.ndarray
    predicted: np.ndarray


def class_maps_of(head: Head, maps: Tensor) -> dict[str, Tensor]:
    """Return `maps` [B, h, w] and `predicted` [B] of feature maps [B, C, h, w]."""
    pooled = maps.mean((2, 3), dtype=torch.float32)
    predicted = head.logits(pooled).argmax(1)
    alpha = head.alpha(pooled, predicted) / (maps.shape[2] * maps.shape[3])
    return {"maps": torch.einsum("bc,bchw->bhw", alpha, maps.float()), "predicted": predicted}


def class_maps(network: Network, dataset: Dataset, positions: np.ndarray, config: Config, device: str) -> ClassMaps:
    """Return the class maps of the samples at `positions`, by `network` in evaluation mode on `device`."""

    def step(images: Tensor, roi: PackedRoi) -> dict[str, Tensor]:
        return class_maps_of(network.head, _features(network, images, config, device))

    parts = list(steps_over(dataset, positions, step, device))
    return ClassMaps(*(np.concatenate([part[name] for part in parts]) for name in ("maps", "predicted")))


def feature_maps(
    network: Network, dataset: Dataset, positions: np.ndarray, config: Config, device: str
) -> Iterator[MapBatch]:
    """Yield the feature maps and class maps of the samples at `positions`, by `network` in evaluation mode."""

    def step(images: Tensor, roi: PackedRoi) -> dict[str, Tensor]:
        maps = _features(network, images, config, device)
        return {"maps": maps.float(), "class_maps": class_maps_of(network.head, maps)["maps"]}

    return (MapBatch(**batch) for batch in steps_over(dataset, positions, step, device))


def _features(network: Network, images: Tensor, config: Config, device: str) -> Tensor:
    """Return the feature maps [B, C, h, w] in the precision of `config`."""
    with autocast(device, config.precision):
        return network.features(images)

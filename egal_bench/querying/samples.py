"""Samples whose images are read a second time: for features, feature maps and ROIs that the scores do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.models.network import Network
from egal_bench.querying.pools import PoolSet
from egal_bench.querying.score_shard import images_of
from egal_bench.scoring.batches import steps_over
from egal_bench.scoring.class_maps import feature_maps
from egal_bench.scoring.pool_pass import scorer
from egal_bench.strategies.pool import MapStream


@dataclass(frozen=True, eq=False)
class Samples:
    """Some samples of the pools, those of one pool after each other, pools in the order of their names.

    Attributes:
        pools: str [n], the names of their pools.
        positions: int64 [n], in their shard sets.
        network: on `device`.
        config: the settings with which it was trained.
        device: where it runs.
        sets: the shard sets by name.
    """

    pools: np.ndarray
    positions: np.ndarray
    network: Network
    config: Config
    device: str
    sets: Mapping[str, PoolSet]

    def __len__(self) -> int:
        return len(self.positions)

    def labels(self) -> np.ndarray:
        """Return the labels, int64 [n]; -1 in a set without labels."""
        return np.concatenate([np.empty(0, np.int64), *(dataset.shards.rows.label for dataset in self._datasets())])

    def features(self) -> np.ndarray:
        """Return the pooled features, float32 [n, C]; n must be at least 1."""
        step = scorer(self.network, self.config, self.device, needs={"features"})
        passes = (steps_over(dataset, _all(dataset), step, self.device) for dataset in self._datasets())
        return np.concatenate([part["features"] for part in chain.from_iterable(passes)])

    def maps(self) -> MapStream:
        """Return the feature maps and class maps."""
        return MapStream(
            lambda: chain.from_iterable(
                feature_maps(self.network, dataset, _all(dataset), self.config, self.device)
                for dataset in self._datasets()
            )
        )

    def rois(self) -> np.ndarray:
        """Return the ROIs, bool [n, H, W]; n must be at least 1. Raises BenchError where image sizes differ."""
        parts = [dataset.rois(_all(dataset)) for dataset in self._datasets()]
        sizes = sorted({part.shape[1] for part in parts})
        if len(sizes) > 1:
            raise BenchError(
                f"the strategy reads ROIs as pixels, and the images of the shard sets have {sizes[0]} and {sizes[1]} "
                "pixels per side: pack them with one --size"
            )
        return np.concatenate(parts)

    def _datasets(self) -> Iterator[Dataset]:
        """Yield the samples of each pool, one pool in memory at a time."""
        for name in np.unique(self.pools).tolist():
            yield images_of(self.sets[name].samples_at(self.positions[self.pools == name]))


def _all(dataset: Dataset) -> np.ndarray:
    """Return the positions of all samples, in their order."""
    return np.arange(len(dataset.shards))

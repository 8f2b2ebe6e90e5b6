"""The finetune regime: in each round the whole network is trained on the labelled set."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.model import Network
from egal_bench.pool_pass import score
from egal_bench.scores import Scores
from egal_bench.training import Samples, held_out, train
from egal_kernels import PackedRoi

LOAD_BATCH = 64


class FinetuneLearner:
    """Fits and scores with a whole network; every strategy of a seed starts from the same weights.

    So does every round, unless `config.warm_start`.

    Args:
        network: freshly initialised. loader: the stream that holds out, orders and augments the training images.
        unfinished: folder of the run's scores while it lasts; None: a temporary one each pass.
    """

    def __init__(
        self, dataset: Dataset, network: Network, config: Config, loader: np.random.SeedSequence, device: str,
        unfinished: Path | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.config, self.device = dataset, config, device
        self.network = network.to(device)
        self.initial = copy.deepcopy(self.network.state_dict())
        self.loader, self.unfinished = loader, unfinished

    def fit(self, labelled: np.ndarray, round_: int) -> np.ndarray:
        """Train on the samples at positions `labelled`, in the order of labelling; what it looked at of their ROIs."""
        config = self.config
        rng = np.random.default_rng([*self.loader.generate_state(4), round_])
        held = held_out(self.dataset.labels[labelled], self.dataset.classes, config.early_stop, self.loader)
        if config.early_stop and not held.any():
            raise BenchError(f"--early-stop {config.early_stop} holds out none of {len(labelled)} labels: raise --init")
        trained = labelled[~held]
        if round_ == 0 or not config.warm_start:
            self.network.load_state_dict(self.initial)
        kept = self._load(labelled[held]) if held.any() else None
        loss = train(self.network, self._load(trained), kept, config, rng)
        if not math.isfinite(loss):
            raise BenchError(f"training diverged in round {round_}: lower --learning-rate (now {config.learning_rate})")
        return trained if config.explain_loss else trained[:0]

    def score(self, positions: np.ndarray, *, overlap: bool, features: bool = False) -> Scores:
        """Scores of the samples at `positions`, streamed from the shards; see `pool_pass.score`."""
        return score(
            self.network, self.dataset, positions, self.config, self.device,
            overlap=overlap, features=features, folder=self.unfinished,
        )  # fmt: skip

    def _load(self, positions: np.ndarray) -> Samples:
        """The samples at `positions`, of the labelled set, which the budget bounds."""
        shards = self.dataset.shards
        batches = list(shards.batches(positions, LOAD_BATCH, self.device))
        images, labels = torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])
        if not self.config.explain_loss:
            return Samples(images, labels)
        return Samples(
            images, labels, PackedRoi(torch.cat([batch.roi for batch in batches]), shards.manifest.image.size)
        )

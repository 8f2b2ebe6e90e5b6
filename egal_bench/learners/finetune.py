"""The finetune regime: in each round the whole network is trained on the labelled set."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.learners.augmentation import Samples
from egal_bench.learners.dropout import dropout_logits
from egal_bench.learners.episodes import train_in_episodes
from egal_bench.learners.holdout import held_out
from egal_bench.learners.learner import DRAWS, Fit
from egal_bench.learners.training import fitted, train
from egal_bench.models.inference import inference_network
from egal_bench.models.network import Network
from egal_bench.models.saving import network_file, read_state, state_file
from egal_bench.scoring.class_maps import ClassMaps, class_maps, feature_maps
from egal_bench.scoring.pool_pass import score
from egal_bench.scoring.scores import Scores
from egal_bench.strategies.pool import MapBatch
from egal_kernels import PackedRoi

LOAD_BATCH = 64


class FinetuneLearner:
    """Fits and scores with a whole network; every strategy of a seed starts from the same weights.

    Every round starts from these weights as well, unless `config.warm_start`.

    Args:
        dataset: the shard set.
        network: freshly initialised.
        config: gives the recipe of training and of scoring.
        loader: the stream that holds out, orders and augments the training images.
        device: where the network runs.
        scratch: folder for the scores of the run while it lasts; None: a temporary folder per pass.
    """

    def __init__(
        self, dataset: Dataset, network: Network, config: Config, loader: np.random.SeedSequence, device: str,
        scratch: Path | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.config, self.device = dataset, config, device
        self.network = network.to(device)
        self.initial = copy.deepcopy(self.network.state_dict())
        self.loader, self.scratch = loader, scratch
        self._copy: Network | None = None  # of the network as it was trained last, for passes

    def fit(self, labelled: np.ndarray, round_: int) -> Fit:
        """Train on the samples at `labelled`, in the order of labelling.

        Raises:
            BenchError: the held-out set would be empty, or the loss is not finite.
        """
        config, self._copy = self.config, None
        rng = np.random.default_rng([*self.loader.generate_state(4), round_])
        is_held_out = held_out(self.dataset.labels[labelled], self.dataset.classes, config.early_stop, self.loader)
        if config.early_stop and not is_held_out.any():
            raise BenchError(f"--early-stop {config.early_stop} holds out none of {len(labelled)} labels: raise --init")
        trained = labelled[~is_held_out]
        if round_ == 0 or not config.warm_start:
            self.network.load_state_dict(self.initial)
        held_out_samples = self._load(labelled[is_held_out]) if is_held_out.any() else None
        samples = self._load(trained)
        if config.head == "prototypical":
            episodes = train_in_episodes(self.network, samples, config, rng)
            steps, last_loss, explained = episodes.steps, episodes.loss, trained[episodes.queried]
        else:
            steps, last_loss = train(self.network, samples, held_out_samples, config, rng)
            explained = trained
        if not math.isfinite(last_loss):
            raise BenchError(f"training diverged in round {round_}: lower --learning-rate (now {config.learning_rate})")
        loss, accuracy = fitted(self.network, samples, config.precision)
        return Fit(explained if config.explain_loss else trained[:0], loss, accuracy, steps)

    def score(self, positions: np.ndarray, needs: Collection[str], roi_of: np.ndarray | None = None) -> Scores:
        """Return the Scores of the samples at `positions`, streamed from the shards; see `pool_pass.score`."""
        return score(
            self._inference(), self.dataset, positions, self.config, self.device, needs=needs, roi_of=roi_of,
            folder=self.scratch,
        )  # fmt: skip

    def draws(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the logits of the head under DRAWS dropout masks, float32 [N, T, K]; see `dropout_logits`."""
        return dropout_logits(self.network.head, features, self.config.head_dropout, DRAWS, rng)

    def maps(self, positions: np.ndarray) -> Iterator[MapBatch]:
        """Yield the feature maps of the samples at `positions` with their class maps, by a pass over their images."""
        return feature_maps(self._inference(), self.dataset, positions, self.config, self.device)

    def class_maps(self, positions: np.ndarray) -> ClassMaps:
        """Return the class maps of the samples at `positions`; see `scoring.class_maps`."""
        return class_maps(self._inference(), self.dataset, positions, self.config, self.device)

    def state(self) -> dict[str, bytes]:
        """Return the weights where the next round starts from them, else {}."""
        return {"weights.safetensors": state_file(self.network)} if self.config.warm_start else {}

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Load the weights of the last finished round, where there are any."""
        if "weights.safetensors" in files:
            self.network.load_state_dict(read_state(files["weights.safetensors"]))
            self.network.eval()
            self._copy = None

    def network_file(self) -> dict[str, bytes]:
        """Return the network and how to build it as {"network.safetensors": content}."""
        return {"network.safetensors": network_file(self.network, self.dataset, self.config)}

    def _inference(self) -> Network:
        """Return the copy for passes of the network as it is; see `inference_network`."""
        if self._copy is None:
            self._copy = inference_network(self.network, self.device, self.config.precision, self.config.compile)
        return self._copy

    def _load(self, positions: np.ndarray) -> Samples:
        """Return the samples at `positions`, of the labelled set, whose size the budget bounds."""
        shards = self.dataset.shards
        batches = list(shards.batches(positions, LOAD_BATCH, self.device))
        images, labels = torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])
        if not self.config.explain_loss:
            return Samples(images, labels)
        return Samples(
            images, labels, PackedRoi(torch.cat([batch.roi for batch in batches]), shards.manifest.image.size)
        )

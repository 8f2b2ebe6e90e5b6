"""The frozen regime with a prototypical head: its embedding is trained in episodes on standardised pooled features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.learners.episodes import Episode, query_loss, run_episodes
from egal_bench.learners.frozen import FrozenLearner
from egal_bench.learners.learner import DRAWS, Fit
from egal_bench.models.heads import PrototypicalHead
from egal_bench.scoring.features import Features


class FrozenEpisodesLearner(FrozenLearner):
    """Fits and scores with cached features; every strategy of a seed starts each round from the same embedding.

    Args:
        dataset: the shard set.
        features: of all its samples.
        config: gives the recipe of training and of scoring.
        streams: the random streams of the run: `model` draws the first embedding, `loader` draws the episodes.
    """

    def __init__(
        self, dataset: Dataset, features: Features, config: Config, streams: Mapping[str, np.random.SeedSequence]
    ) -> None:
        super().__init__(dataset, features, config)
        self.streams = streams
        self.head = self._initial_head()

    def fit(self, labelled: np.ndarray, round_: int) -> Fit:
        """Train the embedding on the samples at `labelled`, from that of the seed; no ROI is used.

        Raises:
            BenchError: the loss is not finite.
        """
        pooled, labels = self.cached.pooled[labelled], self.dataset.labels[labelled]
        x = torch.from_numpy(((pooled - self.mean) / self.scale).astype(np.float32))
        head, rng = self._initial_head(), np.random.default_rng([*self.streams["loader"].generate_state(4), round_])

        def loss_of(episode: Episode) -> Tensor:
            rows = np.concatenate([episode.shots.ravel(), episode.queries.ravel()])
            return query_loss(head, x[rows], episode)[0]

        trained = run_episodes(loss_of, head.parameters(), labels, self.config, rng)
        if not np.isfinite(trained.loss):
            rate = self.config.learning_rate
            raise BenchError(f"training diverged in round {round_}: lower --learning-rate (now {rate})")
        self.head = self._unstandardised(head)
        self._prototyped = labelled if self.config.prototypes == "all" else labelled[trained.last.shots.ravel()]
        with torch.no_grad():
            self.head.set_prototypes(*self._embedded(self._prototyped))
            logits, true = self.head.logits(torch.from_numpy(pooled)), torch.from_numpy(labels)
            loss, right = F.cross_entropy(logits, true), logits.argmax(1) == true
        return Fit(labelled[:0], loss.item(), right.float().mean().item(), trained.steps)

    @torch.no_grad()
    def draws(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the logits of DRAWS heads, float32 [N, T, K], for pooled features float32 [N, C].

        The embedding is the same for all; the prototypes of each are those of a bootstrap resample, drawn from `rng`,
        of the labelled samples.
        """
        embeddings, labels = self._embedded(self._prototyped)
        present, pooled = self._head(), torch.from_numpy(np.array(features, np.float32))
        logits = []
        for _ in range(DRAWS):
            rows = torch.from_numpy(rng.integers(0, len(labels), len(labels)))
            present.set_prototypes(embeddings[rows], labels[rows])
            logits.append(present.logits(pooled))
        return torch.stack(logits, 1).numpy()

    def _embedded(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the embeddings and the labels of the samples at `positions`."""
        pooled = torch.from_numpy(np.array(self.cached.pooled[positions]))
        return self.head.embed(pooled), torch.from_numpy(self.dataset.labels[positions])

    def _logits(self, features: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.head.logits(torch.from_numpy(np.array(features))).numpy()

    def _head(self) -> PrototypicalHead:
        """Return a copy of the present head."""
        head = PrototypicalHead(len(self.mean), self.dataset.classes)
        head.load_state_dict(self.head.state_dict())
        return head

    def _initial_head(self) -> PrototypicalHead:
        """Return the head from which every round starts."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.streams["model"].generate_state(1)[0]))
            return PrototypicalHead(len(self.mean), self.dataset.classes)

    def _unstandardised(self, head: PrototypicalHead) -> PrototypicalHead:
        """Return the head that gives for pooled features what `head` gives for standardised ones."""
        own = PrototypicalHead(len(self.mean), self.dataset.classes)
        weight = head.projection.weight.detach().double().numpy() / self.scale
        own.projection.weight.data = torch.from_numpy(weight).float()
        own.projection.bias.data = (
            head.projection.bias.detach().double() - torch.from_numpy(weight @ self.mean)
        ).float()
        return own

"""The finetune regime: in each round the whole network, retrained from the seed's initialisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.errors import BenchError
from egal_bench.model import Network
from egal_bench.scores import Scores, of_acquisitions, of_logits
from egal_kernels import Acquisition, PackedRoi, acquire

WARMUP = 0.25  # of the steps
CLIP = 10.0  # norm of the gradient
SCORE_BATCH = 64


class FinetuneLearner:
    """Fits and scores with a whole network; every round and strategy of a seed starts from the same weights.

    Args:
        network: freshly initialised. loader: the stream that orders and augments the training images.
    """

    def __init__(
        self, dataset: Dataset, network: Network, config: Config, loader: np.random.SeedSequence, device: str
    ) -> None:
        self.dataset, self.config, self.device = dataset, config, device
        self.network = network.to(device)
        self.initial = copy.deepcopy(self.network.state_dict())
        self.loader = loader

    def fit(self, labelled: np.ndarray, round_: int) -> None:
        """Train on the samples at positions `labelled`: `steps` of AdamW in one cycle; images flipped and shifted."""
        config = self.config
        rng = np.random.default_rng([*self.loader.generate_state(4), round_])
        images, labels = self._load(labelled)
        network = self.network
        network.load_state_dict(self.initial)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle((step + 0.5) / config.steps))
        for rows in islice(_orders(len(labelled), config.batch_size, rng), config.steps):
            loss = F.cross_entropy(network(_augment(images[rows], rng)), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise BenchError(f"training diverged in round {round_}: lower --learning-rate (now {config.learning_rate})")
        network.eval()

    def score(self, positions: np.ndarray, *, overlap: bool) -> Scores:
        """Scores of the samples at `positions`, streamed from the shards."""
        keys = self.dataset.keys[positions]
        if overlap:
            return of_acquisitions(self._acquire(positions), keys, soft=self.config.overlap == "soft")
        head = self.network.head
        with torch.inference_mode():
            logits = head(torch.from_numpy(self.features(positions)).to(self.device)).cpu().numpy()
        return of_logits(logits, keys)

    @torch.inference_mode()
    def features(self, positions: np.ndarray) -> np.ndarray:
        """Pooled features, float32 [N, C]."""
        batches = self.dataset.shards.batches(positions, SCORE_BATCH, self.device)
        return np.concatenate([self.network.features(batch.images).mean((2, 3)).cpu().numpy() for batch in batches])

    @torch.inference_mode()
    def _acquire(self, positions: np.ndarray) -> Iterator[Acquisition]:
        head, height = self.network.head, self.dataset.shards.manifest.image.size
        for batch in self.dataset.shards.batches(positions, SCORE_BATCH, self.device):
            yield acquire(
                self.network.features(batch.images), head.weight, head.bias, PackedRoi(batch.roi, height),
                threshold=self.config.threshold, convention=self.config.explain_convention,
            )  # fmt: skip

    def _load(self, labelled: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images uint8 [L, C, H, W] and labels int64 [L] of the labelled set, which the budget bounds."""
        batches = list(self.dataset.shards.batches(labelled, SCORE_BATCH, self.device))
        return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def _orders(samples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of each batch, without end: every epoch a new permutation, cut evenly, so that no batch holds one sample."""
    while True:
        yield from np.array_split(rng.permutation(samples), -(-samples // batch_size))


def _one_cycle(done: float) -> float:
    """Share of the peak learning rate after `done` (0 to 1) of the steps: a linear rise over WARMUP, a cosine to 0."""
    return done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))


def _augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """`images` [B, C, H, W], each flipped left-right or not and shifted by up to 1/16 of its side."""
    side = images.shape[-1]
    reach = side // 16
    padded = F.pad(images, (reach, reach, reach, reach))
    shifts = rng.integers(0, 2 * reach + 1, size=(len(images), 2))
    moved = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, shifts, strict=True)])
    flip = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
    return torch.where(flip[:, None, None, None], moved.flip(-1), moved)

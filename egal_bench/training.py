"""One round of training: a network, the labelled set and a recipe that is the same for every strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.model import Network
from egal_bench.precision import autocast
from egal_kernels import PackedRoi, cam_loss, pack_roi

WARMUP = 0.25  # of the steps
CLIP = 10.0  # norm of the gradient
CHECKS = 20  # of the held-out NLL in a round, evenly spaced; the last follows the last step
PATIENCE = 10  # checks in a row without a new best that end the round: half the cycle, whose end is what helps most
EVAL_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """L labelled samples on one device: images uint8 or uint16 [L, C, H, W], labels int64 [L], their ROIs if read."""

    images: Tensor
    labels: Tensor
    roi: PackedRoi | None = None


@dataclass(frozen=True)
class Objective:
    """What a step lowers: NLL + `explain`·(1 − soft Dice of the true class's Grad-CAM with the ROI).

    Attributes:
        convention: of the Grad-CAM. weight: of each class, float32 [K]; None: all 1.
        precision: "float32", or "bfloat16" for the trunk's autocast; losses, gradients and weights stay float32.
    """

    explain: float = 0.0
    convention: str = "grad-cam"
    weight: Tensor | None = None
    precision: str = "float32"

    def __call__(self, network: Network, batch: Samples) -> Tensor:
        """A scalar: the NLL averaged over the batch, the explanation over its samples whose ROI is in sight."""
        features = self.features(network, batch.images)
        loss = self.nll(network, features, batch.labels) / len(batch.labels)
        if batch.roi is None:
            return loss
        explained = cam_loss(features, network.head.weight, batch.roi, batch.labels, convention=self.convention)
        return loss + self.explain * explained.sum() / (batch.roi.area() > 0).sum().clamp(min=1)  # without ROI: 0

    def features(self, network: Network, images: Tensor) -> Tensor:
        """Feature maps [B, C, h, w] in this precision."""
        with autocast(images.device.type, self.precision):
            return network.features(images)

    def nll(self, network: Network, features: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood, a scalar: summed, each sample counted as its class weighs."""
        return F.cross_entropy(network.head(features.float().mean((2, 3))), labels, self.weight, reduction="sum")


def train(network: Network, samples: Samples, held: Samples | None, config: Config, rng: np.random.Generator) -> float:
    """The last step's loss; leaves `network` trained and in evaluation mode.

    `config.steps` of AdamW in one cycle; images flipped and shifted, their ROIs with them. Where some samples are
    `held` out, the cycle stays laid over `steps`, but the weights of the least held-out NLL are kept, and training
    ends after PATIENCE checks without a lower one.

    Args:
        samples: with ROIs if `config.explain_loss` is above 0. rng: orders and augments.
    """
    weight = class_weights(samples.labels, network.head.out_features) if config.class_balance else None
    objective = Objective(config.explain_loss, config.explain_convention, weight, config.precision)
    best = None if held is None else _Best(network, objective, held)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle((step + 0.5) / config.steps))
    network.train()
    for step, rows in enumerate(islice(_orders(len(samples.labels), config.batch_size, rng), config.steps)):
        loss = update(network, optimizer, objective, augmented(samples, rows, rng))
        schedule.step()
        due = (step + 1) * CHECKS // config.steps > step * CHECKS // config.steps
        if best is not None and due and not best.improves():
            break
    if best is not None:
        best.restore()
    network.eval()
    return loss.item()


def update(network: Network, optimizer: torch.optim.Optimizer, objective: Objective, batch: Samples) -> Tensor:
    """The objective on `batch`, a scalar, before the step of `optimizer` that this takes."""
    loss = objective(network, batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()
    return loss.detach()


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Float32 [K]: L / (classes present · samples of the class), of mean 1 over the samples `labels` int64 [L].

    That is scikit-learn's "balanced"; 0 for a class without samples.
    """
    counts = torch.from_numpy(np.bincount(labels.cpu().numpy(), minlength=classes))
    weights = len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)) * (counts > 0)
    return weights.float().to(labels.device)


def held_out(labels: np.ndarray, classes: int, share: float, loader: np.random.SeedSequence) -> np.ndarray:
    """Which samples to hold out, bool [L]: of each class every 1/share-th in the order of labelling, never the first.

    `loader` sets where each class starts to count. What is labelled later changes nothing of this, so that no weights
    meet a held-out sample that they were trained on in an earlier round.

    Args:
        labels: int64 [L], in the order in which they were bought. share: 0 to 1, 1 excluded.
    """
    starts = np.random.default_rng(loader).random(classes) * (1 - share)
    held = np.zeros(len(labels), dtype=bool)
    for label, start in enumerate(starts):
        rows = np.flatnonzero(labels == label)
        counts = np.floor(start + share * np.arange(len(rows) + 1))
        held[rows] = np.diff(counts) > 0
    return held


def augmented(samples: Samples, rows: np.ndarray, rng: np.random.Generator) -> Samples:
    """The samples at `rows`, each flipped left-right or not and shifted by up to 1/16 of its side, ROI and all."""
    images, roi = samples.images, samples.roi
    reach = images.shape[-1] // 16
    shifts = rng.integers(0, 2 * reach + 1, size=(len(rows), 2))
    flip = torch.from_numpy(rng.random(len(rows)) < 0.5).to(images.device)
    bits = images.view(torch.int16) if images.dtype == torch.uint16 else images  # which every device can move
    moved = _moved(bits[rows], shifts, flip, reach).view(images.dtype)
    if roi is not None:
        roi = pack_roi(_moved(roi[torch.from_numpy(rows)].unpack()[:, None], shifts, flip, reach)[:, 0])
    return Samples(moved, samples.labels[rows], roi)


def _moved(planes: Tensor, shifts: np.ndarray, flip: Tensor, reach: int) -> Tensor:
    """`planes` [B, C, H, W] padded by `reach`, cropped at `shifts` [B, 2] (y, x), then mirrored where `flip` [B]."""
    side = planes.shape[-1]
    padded = F.pad(planes, (reach, reach, reach, reach))
    cropped = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, shifts, strict=True)])
    return torch.where(flip[:, None, None, None], cropped.flip(-1), cropped)


class _Best:
    """The weights of the least NLL, summed over the held-out samples, that a check has found."""

    def __init__(self, network: Network, objective: Objective, held: Samples) -> None:
        self.network, self.objective, self.held = network, objective, held
        self.least, self.since = math.inf, 0
        self.state: dict[str, Tensor] = {}

    def improves(self) -> bool:
        """Check; whether one of the last PATIENCE checks found a new best."""
        nll = self._measure()
        self.since += 1
        if nll < self.least:
            self.least, self.since = nll, 0
            self.state = {name: value.clone() for name, value in self.network.state_dict().items()}
        return self.since < PATIENCE

    def restore(self) -> None:
        """Give the network its best weights, if any had a finite NLL."""
        if self.state:
            self.network.load_state_dict(self.state)

    @torch.no_grad()
    def _measure(self) -> float:
        self.network.eval()
        total = 0.0
        batches = zip(*(torch.split(whole, EVAL_BATCH) for whole in (self.held.images, self.held.labels)), strict=True)
        for images, labels in batches:
            features = self.objective.features(self.network, images)
            total += self.objective.nll(self.network, features, labels).item()
        self.network.train()
        return total


def _orders(samples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of each batch, without end: every epoch a new permutation, cut evenly, so that no batch holds one sample."""
    while True:
        yield from np.array_split(rng.permutation(samples), -(-samples // batch_size))


def _one_cycle(done: float) -> float:
    """Share of the peak learning rate after `done` (0 to 1) of the steps: a linear rise over WARMUP, a cosine to 0."""
    return done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))

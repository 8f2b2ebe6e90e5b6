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
from egal_bench.console import say
from egal_bench.learners.augmentation import Samples, augmented
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_kernels import cam_loss

WARMUP = 0.25  # share of the steps
CLIP = 10.0  # norm of the gradient
CHECKS = 20  # measurements of the held-out NLL per round, evenly spaced; the last follows the last step
PATIENCE = 10  # checks without a new best that end the round: half the cycle, whose second half helps most
EVAL_BATCH = 64


@dataclass(frozen=True)
class Objective:
    """What a step lowers: NLL + `explain`·(1 − soft Dice of the true class's Grad-CAM with the ROI).

    Attributes:
        explain: weight of the explanation.
        convention: convention of the Grad-CAM.
        weight: weight of each class, float32 [K]; None: all 1.
        precision: "float32", or "bfloat16" for the trunk's autocast; losses, gradients and weights stay float32.
    """

    explain: float = 0.0
    convention: str = "grad-cam"
    weight: Tensor | None = None
    precision: str = "float32"

    def __call__(self, network: Network, batch: Samples) -> Tensor:
        """Return a scalar: the mean NLL of the batch, plus the mean explanation loss of its samples with ROI."""
        maps = self.features(network, batch.images)
        pooled = maps.float().mean((2, 3))
        loss = self.nll(network, pooled, batch.labels) / len(batch.labels)
        if batch.roi is None:
            return loss
        weights, rows = network.head.channel_weights(pooled, batch.labels)
        explained = cam_loss(maps, weights, batch.roi, rows, convention=self.convention)
        return loss + self.explain * explained.sum() / (batch.roi.area() > 0).sum().clamp(min=1)  # without ROI: 0

    @torch.no_grad()
    def explains(self, network: Network, batch: Samples) -> bool:
        """Return whether the explanation has a gradient: whether some Grad-CAM of the batch is positive somewhere."""
        assert batch.roi is not None
        with_roi = batch.roi.area() > 0
        maps = self.features(network, batch.images)
        weights, rows = network.head.channel_weights(maps.float().mean((2, 3)), batch.labels)
        explained = cam_loss(maps, weights, batch.roi, rows, convention=self.convention)
        return not with_roi.any() or bool((explained[with_roi] < 1).any())

    def features(self, network: Network, images: Tensor) -> Tensor:
        """Return the feature maps [B, C, h, w] in this precision."""
        with autocast(str(images.device), self.precision):
            return network.features(images)

    def nll(self, network: Network, pooled: Tensor, labels: Tensor) -> Tensor:
        """Return the summed negative log-likelihood, a scalar; each sample counts by the weight of its class.

        Args:
            pooled: float32 [B, C].
            labels: int64 [B].
        """
        return F.cross_entropy(network.head.logits(pooled), labels, self.weight, reduction="sum")


def train(network: Network, samples: Samples, held: Samples | None, config: Config, rng: np.random.Generator) -> float:
    """Train `network` for one round and return the last step's loss; the network ends in evaluation mode.

    `config.steps` steps of AdamW follow one cycle of the learning rate; images are mirrored and shifted, their ROIs
    with them. With held-out samples the cycle still spans `config.steps`, but training ends after PATIENCE checks
    without a lower held-out NLL, and the network keeps the weights of the lowest one.

    Args:
        network: on the device of the samples.
        samples: the training samples, with ROIs if `config.explain_loss` is above 0.
        held: the held-out samples; None: there are none.
        config: the recipe.
        rng: orders and augments the samples.
    """
    weight = class_weights(samples.labels, network.head.classes) if config.class_balance else None
    objective = Objective(config.explain_loss, config.explain_convention, weight, config.precision)
    best = None if held is None else _BestWeights(network, objective, held)
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
    if samples.roi is not None and not objective.explains(network, _first(samples)):
        say("--explain-loss: no Grad-CAM of the labelled samples is positive anywhere, so this loss has no gradient")
    return loss.item()


def update(network: Network, optimizer: torch.optim.Optimizer, objective: Objective, batch: Samples) -> Tensor:
    """Take one step of `optimizer` and return the objective on `batch` before that step, a scalar."""
    loss = objective(network, batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()
    return loss.detach()


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return the weight of each class, float32 [K]: L / (classes present · samples of the class).

    The mean over the samples `labels`, int64 [L], is 1. This is scikit-learn's "balanced"; a class without samples
    has weight 0.
    """
    counts = torch.from_numpy(np.bincount(labels.cpu().numpy(), minlength=classes))
    weights = len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)) * (counts > 0)
    return weights.float().to(labels.device)


class _BestWeights:
    """The weights with the lowest NLL, summed over the held-out samples, that a check has seen."""

    def __init__(self, network: Network, objective: Objective, held: Samples) -> None:
        self.network, self.objective, self.held = network, objective, held
        self.lowest, self.checks_since = math.inf, 0
        self.state: dict[str, Tensor] = {}

    def improves(self) -> bool:
        """Measure the held-out NLL; return whether one of the last PATIENCE checks has lowered it."""
        nll = self._measure()
        self.checks_since += 1
        if nll < self.lowest:
            self.lowest, self.checks_since = nll, 0
            self.state = {name: value.clone() for name, value in self.network.state_dict().items()}
        return self.checks_since < PATIENCE

    def restore(self) -> None:
        """Give the network its best weights, if any had a finite NLL."""
        if self.state:
            self.network.load_state_dict(self.state)

    @torch.no_grad()
    def _measure(self) -> float:
        self.network.eval()
        total = 0.0
        batches = zip(*(torch.split(part, EVAL_BATCH) for part in (self.held.images, self.held.labels)), strict=True)
        for images, labels in batches:
            pooled = self.objective.features(self.network, images).float().mean((2, 3))
            total += self.objective.nll(self.network, pooled, labels).item()
        self.network.train()
        return total


def _first(samples: Samples) -> Samples:
    """Return the first EVAL_BATCH samples."""
    rows = torch.arange(min(EVAL_BATCH, len(samples.labels)))
    return Samples(samples.images[rows], samples.labels[rows], None if samples.roi is None else samples.roi[rows])


def _orders(samples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, without end.

    Every epoch is a new permutation, cut into even parts, so that no batch holds a single sample.
    """
    while True:
        yield from np.array_split(rng.permutation(samples), -(-samples // batch_size))


def _one_cycle(done: float) -> float:
    """Return the share of the peak learning rate after a share `done` (0 to 1) of the steps.

    The rate rises linearly over WARMUP, then falls to 0 along a cosine.
    """
    return done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))

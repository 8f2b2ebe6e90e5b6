"""One round of training: a network, the labelled set and a recipe that is the same for every strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.console import say
from egal_bench.learners.augmentation import Samples, augmented, uploaded
from egal_bench.learners.dropout import dropout_mask
from egal_bench.learners.schedule import OneCycle, Schedule, UntilSettled
from egal_bench.models.cuda_graphs import in_steps
from egal_bench.models.network import Network
from egal_bench.models.precision import autocast
from egal_kernels import cam_loss

CLIP = 10.0  # norm of the gradient
PATIENCE = 10  # checks without a new best that end the round: half of one cycle, whose second half helps most
EVAL_BATCH = 64


@dataclass(frozen=True)
class Objective:
    """What a step lowers: NLL + `explain`·(1 − soft Dice of the true class's Grad-CAM with the ROI).

    Attributes:
        explain: weight of the explanation.
        convention: convention of the Grad-CAM.
        weight: weight of each class, float32 [K]; None: all 1.
        precision: "float32", or "bfloat16" for the trunk's autocast; losses, gradients and weights stay float32.
        dropout: probability with which the NLL of a step sets a pooled feature to 0.
    """

    explain: float = 0.0
    convention: str = "grad-cam"
    weight: Tensor | None = None
    precision: str = "float32"
    dropout: float = 0.0

    def __call__(self, network: Network, batch: Samples, rng: np.random.Generator | None = None) -> Tensor:
        """Return a scalar: the mean NLL of the batch, plus the mean explanation loss of its samples with ROI.

        Args:
            network: the network.
            batch: B samples.
            rng: draws the masks of dropout; None: no dropout. The Grad-CAM is always that of the whole head, since that
                is the one by which samples are scored.
        """
        maps = self.features(network, batch.images)
        pooled = maps.float().mean((2, 3))
        masked = pooled
        if self.dropout and rng is not None:
            masked = pooled * uploaded(dropout_mask((len(pooled), pooled.shape[1]), self.dropout, rng), pooled.device)
        loss = self.nll(network, masked, batch.labels) / len(batch.labels)
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


def train(
    network: Network, samples: Samples, held: Samples | None, config: Config, rng: np.random.Generator
) -> tuple[int, float]:
    """Train `network` for one round; return the number of steps and the objective of the last one.

    The network ends in evaluation mode.

    AdamW follows one cycle of the learning rate over `config.steps`, or goes on until the loss has settled; see
    `schedule`. Images are mirrored and shifted, their ROIs with them. With held-out samples the schedule is the same,
    but training also ends after PATIENCE checks without a lower held-out NLL, and the network keeps the weights of the
    lowest one.

    Args:
        network: on the device of the samples.
        samples: the training samples, with ROIs if `config.explain_loss` is above 0.
        held: the held-out samples; None: there are none.
        config: the recipe.
        rng: orders and augments the samples, and draws the masks of dropout.
    """
    weight = class_weights(samples.labels, network.head.classes) if config.class_balance else None
    objective = Objective(config.explain_loss, config.explain_convention, weight, config.precision, config.head_dropout)
    best = None if held is None else _BestWeights(network, objective, held)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = schedule_of(config, len(samples.labels))
    network.train()
    steps, loss = 0, torch.full((), math.nan)
    with in_steps(network, config.cuda_graphs) as stepped:
        for rows in _orders(len(samples.labels), config.batch_size, rng):
            rate = schedule.rate(steps)
            if rate is None:
                break
            optimizer.param_groups[0]["lr"] = config.learning_rate * rate
            loss = update(stepped, optimizer, objective, augmented(samples, rows, rng), rng)
            schedule.record(loss)
            steps += 1
            if best is not None and schedule.due(steps - 1) and not best.improves():
                break
    if best is not None:
        best.restore()
    network.eval()
    if samples.roi is not None and not objective.explains(network, _first(samples)):
        say("--explain-loss: no Grad-CAM of the labelled samples is positive anywhere, so this loss has no gradient")
    return steps, loss.item()


@torch.no_grad()
def fitted(network: Network, samples: Samples, precision: str) -> tuple[float, float]:
    """Return how well `network`, in evaluation mode, fits `samples`: mean NLL in nats, and accuracy.

    The samples are not augmented, and classes are not weighted.
    """
    objective, nll, right = Objective(precision=precision), [], []
    for images, labels in _batches(samples):
        pooled = objective.features(network, images).float().mean((2, 3))
        nll.append(objective.nll(network, pooled, labels))
        right.append((network.head.logits(pooled).argmax(1) == labels).sum())
    count = len(samples.labels)
    return torch.stack(nll).sum().item() / count, torch.stack(right).sum().item() / count


def schedule_of(config: Config, samples: int) -> Schedule:
    """Return the schedule of a round on this number of samples."""
    if config.steps == "auto":
        return UntilSettled(_steps_per_epoch(samples, config.batch_size))
    return OneCycle(config.steps)


def update(
    network: Network, optimizer: torch.optim.Optimizer, objective: Objective, batch: Samples,
    rng: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Take one step of `optimizer` and return the objective on `batch` before that step, a scalar; see `Objective`."""
    loss = objective(network, batch, rng)
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
        parts = []
        for images, labels in _batches(self.held):
            pooled = self.objective.features(self.network, images).float().mean((2, 3))
            parts.append(self.objective.nll(self.network, pooled, labels))
        self.network.train()
        return sum(torch.stack(parts).tolist())


def _batches(samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images and labels of EVAL_BATCH samples after another."""
    yield from zip(torch.split(samples.images, EVAL_BATCH), torch.split(samples.labels, EVAL_BATCH), strict=True)


def _first(samples: Samples) -> Samples:
    """Return the first EVAL_BATCH samples."""
    rows = torch.arange(min(EVAL_BATCH, len(samples.labels)))
    return Samples(samples.images[rows], samples.labels[rows], None if samples.roi is None else samples.roi[rows])


def _orders(samples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, without end.

    Every epoch is a new permutation, cut into even parts, so that no batch holds a single sample.
    """
    while True:
        yield from np.array_split(rng.permutation(samples), _steps_per_epoch(samples, batch_size))


def _steps_per_epoch(samples: int, batch_size: int) -> int:
    return -(-samples // batch_size)

"""Training in episodes (Snell et al. 2017), the recipe of the prototypical head.

An episode classifies a few labelled samples per class, its queries, by prototypes that it makes of others, its shots.
Each episode is one step of Adam. The learning rate is halved where the mean loss of the epochs no longer falls. Images
are not augmented, and classes are balanced by the way episodes are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.config import Config
from egal_bench.learners.augmentation import Samples
from egal_bench.learners.dropout import dropout_mask
from egal_bench.learners.training import CLIP, EVAL_BATCH, Objective
from egal_bench.models.cuda_graphs import in_steps
from egal_bench.models.heads import PrototypicalHead, scores_of
from egal_bench.models.network import Network
from egal_kernels import cam_loss

FACTOR = 0.5  # by which the learning rate is multiplied on a plateau
PATIENCE = 3  # epochs without a lower mean loss that are tolerated before that


@dataclass(frozen=True, eq=False)
class Episode:
    """The samples of an episode with N classes, as rows of the labelled set.

    Attributes:
        shots: int64 [N, K], the samples that make the prototypes.
        queries: int64 [N, Q], the samples that are classified.
    """

    shots: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True, eq=False)
class Trained:
    """What a round of episodes did.

    Attributes:
        steps: number of episodes.
        loss: the loss of the last one.
        queried: bool [L], whether a sample of the labelled set was the query of some episode.
        last: the last episode.
    """

    steps: int
    loss: float
    queried: np.ndarray
    last: Episode


def drawn(labels: np.ndarray, shots: int, queries: int, rng: np.random.Generator) -> Episode:
    """Return an episode of every class that has a labelled sample, in ascending order of the class.

    Within an episode no sample occurs twice, except in a class with fewer than K + Q samples: such a class is drawn
    with replacement, so a sample of it may be a shot and a query at once.

    Args:
        labels: int64 [L], the classes of the labelled set.
        shots: K.
        queries: Q.
        rng: draws the samples.
    """
    number, rows = shots + queries, []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rows.append(rng.choice(members, number, replace=len(members) < number))
    return Episode(*np.split(np.stack(rows), [shots], axis=1))


def train_in_episodes(network: Network, samples: Samples, config: Config, rng: np.random.Generator) -> Trained:
    """Train `network`, with its prototypical head, for one round; it ends in evaluation mode with its prototypes.

    The loss of an episode is the mean NLL of the queries, plus `config.explain_loss` times the mean of 1 - soft Dice of
    the true class's Grad-CAM with the ROI, over the queries that have one. Both are differentiated through the
    prototypes.

    Args:
        network: on the device of the samples.
        samples: the labelled set, with ROIs if `config.explain_loss` is above 0.
        config: the recipe.
        rng: draws the episodes.
    """
    objective = Objective(config.explain_loss, config.explain_convention, precision=config.precision)
    head = _prototypical(network)

    def loss_of(episode: Episode) -> Tensor:
        rows = np.concatenate([episode.shots.ravel(), episode.queries.ravel()])
        maps = objective.features(stepped, _images(samples, rows))
        pooled = maps.float().mean((2, 3))
        mask = dropout_mask((len(rows), pooled.shape[1]), config.head_dropout, rng) if config.head_dropout else None
        loss, prototypes = query_loss(head, pooled if mask is None else pooled * mask.to(pooled.device), episode)
        if samples.roi is None:
            return loss
        first = episode.shots.size
        roi = samples.roi[torch.from_numpy(rows[first:])]
        alpha = head.alpha_towards(pooled[first:], prototypes)
        each = torch.arange(len(alpha), device=alpha.device)
        explained = cam_loss(maps[first:], alpha, roi, each, convention=objective.convention)
        return loss + objective.explain * explained.sum() / (roi.area() > 0).sum().clamp(min=1)  # without ROI: 0

    network.train()
    labels = samples.labels.cpu().numpy()
    with in_steps(network, config.cuda_graphs) as stepped:
        trained = run_episodes(loss_of, list(network.parameters()), labels, config, rng)
    network.eval()
    rows = np.arange(len(labels)) if config.prototypes == "all" else trained.last.shots.ravel()
    with torch.no_grad():
        pooled = [
            objective.features(network, _images(samples, part)).float().mean((2, 3))
            for part in np.split(rows, range(EVAL_BATCH, len(rows), EVAL_BATCH))
        ]
        head.set_prototypes(head.embed(torch.cat(pooled)), samples.labels[rows])
    return trained


def query_loss(head: PrototypicalHead, pooled: Tensor, episode: Episode) -> tuple[Tensor, Tensor]:
    """Return the mean NLL of the queries, a scalar, and the prototype of the true class of each, [N·Q, EMBEDDING].

    Args:
        head: its own prototypes are not used.
        pooled: float [N·K + N·Q, C], the pooled features of the shots, then of the queries, class by class.
        episode: the episode.
    """
    classes, queries = episode.queries.shape
    embeddings = head.embed(pooled)
    prototypes = embeddings[: episode.shots.size].reshape(*episode.shots.shape, -1).mean(1)  # [N, EMBEDDING]
    true = torch.arange(classes, device=pooled.device).repeat_interleave(queries)
    return F.cross_entropy(scores_of(embeddings[episode.shots.size :], prototypes), true), prototypes[true]


def run_episodes(
    loss_of: Callable[[Episode], Tensor], parameters: Iterable[nn.Parameter], labels: np.ndarray, config: Config,
    rng: np.random.Generator,
) -> Trained:  # fmt: skip
    """Train `parameters` for `config.epochs` epochs of `config.episodes` episodes, each one step of Adam.

    Args:
        loss_of: returns the loss of an episode, a scalar.
        parameters: what is trained.
        labels: int64 [L], the classes of the labelled set.
        config: the recipe.
        rng: draws the episodes.
    """
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=FACTOR, patience=PATIENCE)
    queried = np.zeros(len(labels), bool)
    for _ in range(config.epochs):
        losses = []
        for _ in range(config.episodes):
            episode = drawn(labels, config.shots, config.queries, rng)
            queried[episode.queries] = True
            loss = loss_of(episode)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            losses.append(loss.detach())
        schedule.step(torch.stack(losses).mean().item())
    return Trained(config.epochs * config.episodes, losses[-1].item(), queried, episode)


def _images(samples: Samples, rows: np.ndarray) -> Tensor:
    """Return the images at `rows`. Every device can move int16, but not uint16."""
    images = samples.images
    bits = images.view(torch.int16) if images.dtype == torch.uint16 else images
    return bits[torch.from_numpy(rows)].view(images.dtype)


def _prototypical(network: Network) -> PrototypicalHead:
    assert isinstance(network.head, PrototypicalHead)
    return network.head

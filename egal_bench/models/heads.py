"""Heads: what turns pooled features into class logits, and how each explains a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from egal_bench.models.last_norm import LastNorm

EMBEDDING = 512  # dimensions of the space in which prototypes are compared
UNSEEN = -20.0  # score of a class without labelled samples; those of other classes lie between -2 and 0


class Head(nn.Module):
    """A module from pooled features, float [B, C], to logits [B, K].

    A subclass implements `logits`; it may override `alpha` with a closed form.

    Attributes:
        classes: number of classes, K.
    """

    classes: int

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the logits [B, K] of pooled features [B, C]."""
        raise NotImplementedError

    def alpha(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Return ∂logits[i, classes[i]] / ∂pooled[i], float [B, C], by automatic differentiation.

        Divided by the number of positions h·w, this is the weight of each channel in Grad-CAM (Selvaraju et al. 2017,
        eq. 1), since global average pooling gives each position the same share.

        Args:
            pooled: float [B, C].
            classes: int64 [B], the classes to explain.
        """
        with torch.inference_mode(False), torch.enable_grad():
            recorded = pooled.requires_grad
            leaf = pooled if recorded else pooled.detach().clone().requires_grad_()
            # cloned, since autograd refuses tensors that inference mode has made
            chosen = self.logits(leaf).gather(1, classes[:, None].clone()).sum()
            return torch.autograd.grad(chosen, leaf, create_graph=recorded)[0]

    def channel_weights(self, pooled: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights [R, C] and rows int64 [B], so that weights[rows[i]] is the alpha of sample i."""
        return self.alpha(pooled, classes), torch.arange(len(pooled), device=pooled.device)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return `logits`."""
        return self.logits(pooled)


class LinearHead(nn.Linear, Head):
    """One linear map: its Grad-CAM needs no gradient, since alpha is the row of the weight of the class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.classes = classes

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the logits [B, K] of pooled features [B, C]."""
        return nn.Linear.forward(self, pooled)

    def alpha(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Return the rows of the weight for `classes`, float [B, C]."""
        return self.weight[classes]

    def channel_weights(self, pooled: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight [K, C] and `classes`."""
        return self.weight, classes

    def forward(self, pooled: Tensor) -> Tensor:
        """Return `logits`."""
        return self.logits(pooled)


class PrototypicalHead(Head):
    """One prototype per class (Snell et al. 2017): a class scores minus the Euclidean distance to its prototype.

    A sample's embedding is z = u/|u| with u = W·pooled + b. A prototype is the mean embedding of labelled samples of
    its class. A class without any scores UNSEEN for every sample, has no explanation, and is practically never
    predicted.

    Args:
        channels: C.
        classes: K.
        last_norm: acts on the pooled features first, and says which channels are explained; None: there is none.

    Attributes:
        prototypes: float32 [K, EMBEDDING].
        seen: bool [K], whether the class has a prototype; none has one before `set_prototypes`.
    """

    prototypes: Tensor
    seen: Tensor

    def __init__(self, channels: int, classes: int, last_norm: LastNorm | None = None) -> None:
        super().__init__()
        self.classes, self.last_norm = classes, last_norm
        self.projection = nn.Linear(channels, EMBEDDING)
        self.register_buffer("prototypes", torch.zeros(classes, EMBEDDING))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def embed(self, pooled: Tensor) -> Tensor:
        """Return the embeddings, [B, EMBEDDING], each of length 1, of pooled features [B, C]."""
        return F.normalize(self._projected(pooled), dim=1)

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the scores [B, K] of pooled features [B, C]: minus the distances to the prototypes."""
        return scores_of(self.embed(pooled), self.prototypes).masked_fill(~self.seen, UNSEEN)

    def alpha(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Return ∂logits[i, classes[i]] / ∂pooled[i], float [B, C], in closed form; 0 for a class without prototype.

        With a LastNorm, channels that are not explained have 0 as well.
        """
        return self.alpha_towards(pooled, self.prototypes[classes]) * self.seen[classes, None]

    def alpha_towards(self, pooled: Tensor, prototypes: Tensor) -> Tensor:
        """Return the gradient of -|z - prototype| with respect to `pooled`, float [B, C].

        It is Wᵀ·(I - z·zᵀ)·g/|u| with g = (prototype - z)/|prototype - z|, and 0 where z equals the prototype.

        Args:
            pooled: float [B, C].
            prototypes: float [B, EMBEDDING], one per sample.
        """
        projected = self._projected(pooled)
        z = F.normalize(projected, dim=1)
        direction = F.normalize(prototypes - z, dim=1)
        tangent = direction - (direction * z).sum(1, keepdim=True) * z
        alpha = (tangent / projected.norm(dim=1, keepdim=True).clamp_min(1e-12)) @ self.projection.weight
        return alpha if self.last_norm is None else self.last_norm.before(alpha)

    @torch.no_grad()
    def set_prototypes(self, embeddings: Tensor, labels: Tensor) -> None:
        """Make the mean of the `embeddings`, [L, EMBEDDING], of each class of `labels`, int64 [L], its prototype."""
        members = F.one_hot(labels, self.classes).to(embeddings.dtype)  # [L, K]
        counts = members.sum(0)
        self.prototypes.copy_(members.T @ embeddings / counts.clamp_min(1)[:, None])
        self.seen.copy_(counts > 0)

    def _projected(self, pooled: Tensor) -> Tensor:
        return self.projection(pooled if self.last_norm is None else self.last_norm(pooled))


def scores_of(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Return minus the Euclidean distances, [B, M], of embeddings [B, E] to prototypes [M, E].

    The differences are formed one by one: a product of matrices would lose the digits of small distances.
    """
    return -(embeddings[:, None] - prototypes).norm(dim=2)

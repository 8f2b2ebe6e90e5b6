"""Heads: what turns pooled features into class logits, and how each explains a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

"""Dropout on the pooled features: in training, and as the stochastic heads that `bald` compares (Gal et al. 2017).

Only the head is stochastic. Batch norms stay in evaluation mode, since the trunk does not run again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from egal_bench.models.heads import Head

CHUNK = 4096  # samples at a time, a fixed number, so that results do not depend on how many samples there are


def dropout_mask(shape: tuple[int, int], rate: float, rng: np.random.Generator) -> Tensor:
    """Return float32 `shape`: 0 with probability `rate`, else 1 / (1 - rate), so that the mean stays the same."""
    return torch.from_numpy((rng.random(shape, np.float32) >= rate).astype(np.float32) / np.float32(1 - rate))


@torch.no_grad()
def dropout_logits(head: Head, pooled: np.ndarray, rate: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the logits of each sample by each stochastic head, float32 [N, T, K].

    A stochastic head is `head` behind one dropout mask over the channels, which all samples share. The masks are drawn
    first, so a sample's logits do not depend on which samples it is scored with.

    Args:
        head: in evaluation mode.
        pooled: float32 [N, C].
        rate: probability with which a channel is set to 0, 0 to 1, 1 excluded.
        draws: number of stochastic heads, T.
        rng: draws the masks.
    """
    device = next(head.parameters()).device
    masks = dropout_mask((draws, pooled.shape[1]), rate, rng).to(device)
    logits = np.empty((len(pooled), draws, head.classes), np.float32)
    for start in range(0, len(pooled), CHUNK):
        chunk = torch.from_numpy(np.array(pooled[start : start + CHUNK], np.float32)).to(device)
        for t, mask in enumerate(masks):
            logits[start : start + CHUNK, t] = head.logits(chunk * mask).cpu().numpy()
    return logits

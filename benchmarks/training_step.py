"""A training step with `--explain-loss`: augmentation, forward, backward, clipping, AdamW."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.registry import Case, benchmark
from egal_bench.learners.augmentation import Samples, augmented
from egal_bench.learners.training import Objective, update
from egal_bench.models.network import Network, build
from egal_kernels import pack_roi

BATCH, SIZE, CLASSES, THREADS = 16, 224, 3, 2
OBJECTIVE = Objective(explain=0.1)


@benchmark({"resnet18, 16 of 224²": "resnet18"}, rounds=15)
def explained(backbone: str, home: Path) -> Case:
    """A step with the CAM-ROI loss, against a step without it, and against the same loss in plain PyTorch.

        python -m benchmarks training_step/explained

    Plain PyTorch computes the class map, F.interpolate, soft Dice and its gradient by autograd.

    Why it costs little: the explanation uses the features and the head that the step has computed anyway. It adds the
    flip and shift of the packed ROIs, `cam_loss`, and two outer products for the gradient of the features. There is no
    map at the resolution of the ROI and no second pass through the network.
    """
    torch.set_num_threads(THREADS)
    samples = noise_with_discs()

    def check() -> None:
        batch, network = augmented(samples, np.arange(BATCH), np.random.default_rng(0)), built(backbone).eval()
        with torch.no_grad():
            torch.testing.assert_close(OBJECTIVE(network, batch), plain_objective(network, batch), rtol=0, atol=1e-5)

    contenders = {
        "explained": step(backbone, samples),
        "plain": step(backbone, Samples(samples.images, samples.labels)),
        "explained by plain PyTorch": step(backbone, samples, plain=True),
    }
    return Case(contenders=contenders, samples=BATCH, check=check)


def noise_with_discs(count: int = 64) -> Samples:
    """Return images of noise, each with a disc that covers 5 % of it as its ROI."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8))
    centre = torch.from_numpy(rng.integers(SIZE // 4, 3 * SIZE // 4, (count, 2, 1)))
    distance = (torch.arange(SIZE) - centre[:, 0])[:, :, None] ** 2 + (torch.arange(SIZE) - centre[:, 1])[:, None] ** 2
    return Samples(images, torch.from_numpy(rng.integers(0, CLASSES, count)), pack_roi(distance < (SIZE / 8) ** 2))


def built(backbone: str) -> Network:
    """Return the network, with the same random weights in each call."""
    return build(backbone, CLASSES, image_channels=1, image_size=SIZE, size=None, seed=0)


def min_max(maps: Tensor) -> Tensor:
    """Return `maps` [B, H, W], each scaled to 0..1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def plain_objective(network: Network, batch: Samples) -> Tensor:
    """Return OBJECTIVE of `batch` in plain PyTorch, with maps at the resolution of the ROI."""
    features, mask = network.features(batch.images), batch.roi.unpack(torch.float32)
    maps = torch.einsum("nc,nchw->nhw", network.head.weight[batch.labels] / features[0, 0].numel(), features)
    cam = min_max(F.interpolate(min_max(maps.relu())[:, None], (SIZE, SIZE), mode="bilinear")[:, 0])
    loss = 1 - 2 * (cam * mask).sum((1, 2)) / (cam.sum((1, 2)) + mask.sum((1, 2)))
    return F.cross_entropy(network.head(features.mean((2, 3))), batch.labels) + OBJECTIVE.explain * loss.mean()


def step(backbone: str, samples: Samples, plain: bool = False) -> Callable[[], object]:
    """Return a training step on the next random samples, with a network and an optimiser of its own."""
    network, rng = built(backbone).train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> Tensor:
        batch = augmented(samples, rng.permutation(len(samples.labels))[:BATCH], rng)
        return update(network, optimizer, plain_objective if plain else OBJECTIVE, batch)

    return run

"""A training step: augmentation, forward, backward, clipping, AdamW; with `--explain-loss`, and of a small network."""

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
from egal_bench.models.process import reproducible
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


@benchmark({"small-cnn, 20 of 48²": 20}, rounds=15)
def small(batch: int, home: Path) -> Case:
    """A step of the phantom's network, against the same step written as plainly as PyTorch allows.

        python -m benchmarks training_step/small

    The plain step moves one image after another and leaves AdamW and PyTorch's deterministic mode as they are.

    Why: with so small a network much of a step is overhead. One gather moves the whole batch, AdamW updates all
    parameters in one call, and new tensors are not filled with NaN before they are written.
    """
    rng = np.random.default_rng(0)
    samples = Samples(
        torch.from_numpy(rng.integers(0, 256, (200, 1, 48, 48), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, CLASSES, 200)),
    )

    def check() -> None:
        rows = np.arange(batch)
        moved = augmented(samples, rows, np.random.default_rng(0))
        assert torch.equal(moved.images, one_by_one(samples, rows, np.random.default_rng(0)).images)

    return Case(
        contenders={"step": small_step(samples, batch), "plain step": small_step(samples, batch, plain=True)},
        samples=batch, check=check,
    )  # fmt: skip


def one_by_one(samples: Samples, rows: np.ndarray, rng: np.random.Generator) -> Samples:
    """Return what `augmented` returns of samples without ROI, made image by image."""
    side = samples.images.shape[-1]
    reach = side // 16
    shifts, flips = rng.integers(0, 2 * reach + 1, (len(rows), 2)), rng.random(len(rows)) < 0.5
    images = []
    for row, (y, x), flip in zip(rows, shifts, flips, strict=True):
        moved = F.pad(samples.images[row], (reach,) * 4)[:, y : y + side, x : x + side]
        images.append(moved.flip(-1) if flip else moved)
    return Samples(torch.stack(images), samples.labels[rows])


def small_step(samples: Samples, batch: int, plain: bool = False) -> Callable[[], object]:
    """Return a training step of small-cnn on the next random samples, in PyTorch's deterministic mode."""
    network = build("small-cnn", CLASSES, image_channels=1, image_size=48, size=None, seed=0).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=None if plain else True)
    rng, augment = np.random.default_rng(0), one_by_one if plain else augmented

    def run() -> Tensor:
        with reproducible(1):
            torch.utils.deterministic.fill_uninitialized_memory = plain
            rows = rng.permutation(len(samples.labels))[:batch]
            return update(network, optimizer, Objective(), augment(samples, rows, rng))

    return run


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

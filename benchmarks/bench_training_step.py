"""A training step with `--explain-loss` against a plain one: augmentation, forward, backward, clipping, AdamW.

    OMP_NUM_THREADS=1 pytest benchmarks/bench_training_step.py --benchmark-only -s

On 2 cores, with 2 threads: explained 1928 ms a step, plain 1982, 0.995× by the median of ratios (1.11× by least times):
less than their noise. What it adds, timed alone: ROIs flipped, shifted and packed 2.0 ms, loss and its gradients 1.3.

15 rounds, each of the three steps once, in turns, so that a busy machine slows all alike; a line gives medians,
least times, and the median of the ratios by round. Before anything is timed, the objective is compared with plain
PyTorch's.

Why: the explanation takes the features and the head that the step has computed anyway. It adds the flip and shift of
the packed ROIs, `cam_loss`, and the features' gradient by two outer products: no map at the ROI's resolution, no
second pass through the network (`bench_cam_loss.py` times it alone). The third step is the same loss in plain PyTorch:
class map, F.interpolate, soft Dice, autograd.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from egal_bench import model
from egal_bench.training import CLIP, Objective, Samples, augmented, update
from egal_kernels import pack_roi

BATCH, SIZE, CLASSES = 16, 224, 3
OBJECTIVE = Objective(explain=0.1)
ROUNDS = 15


def labelled(count: int = 64) -> Samples:
    """Noise with a disc of 5 % of the image for each ROI."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8))
    centre = torch.from_numpy(rng.integers(SIZE // 4, 3 * SIZE // 4, (count, 2, 1)))
    distance = (torch.arange(SIZE) - centre[:, 0])[:, :, None] ** 2 + (torch.arange(SIZE) - centre[:, 1])[:, None] ** 2
    return Samples(images, torch.from_numpy(rng.integers(0, CLASSES, count)), pack_roi(distance < (SIZE / 8) ** 2))


def resnet18() -> model.Network:
    return model.build("resnet18", CLASSES, image_channels=1, image_size=SIZE, size=None, seed=0)


def min_max(maps: Tensor) -> Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def written_out(network: model.Network, batch: Samples) -> Tensor:
    """The objective in plain PyTorch, maps at the ROI's resolution."""
    features, mask = network.features(batch.images), batch.roi.unpack(torch.float32)
    maps = torch.einsum("nc,nchw->nhw", network.head.weight[batch.labels] / features[0, 0].numel(), features)
    cam = min_max(F.interpolate(min_max(maps.relu())[:, None], (SIZE, SIZE), mode="bilinear")[:, 0])
    explained = 1 - 2 * (cam * mask).sum((1, 2)) / (cam.sum((1, 2)) + mask.sum((1, 2)))
    return F.cross_entropy(network.head(features.mean((2, 3))), batch.labels) + OBJECTIVE.explain * explained.mean()


def step(samples: Samples, written: bool = False) -> Callable[[], object]:
    """A training step on the next random rows, of a network and an optimiser of its own."""
    network, rng = resnet18().train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> Tensor:
        batch = augmented(samples, rng.permutation(len(samples.labels))[:BATCH], rng)
        if not written:
            return update(network, optimizer, OBJECTIVE, batch)
        loss = written_out(network, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        return loss

    return run


def test_step_with_explanation(benchmark):
    samples = labelled()
    batch, network = augmented(samples, np.arange(BATCH), np.random.default_rng(0)), resnet18().eval()
    with torch.no_grad():
        ours, theirs = OBJECTIVE(network, batch).item(), written_out(network, batch).item()
    assert ours == pytest.approx(theirs, abs=1e-5)

    explained = step(samples)
    peers = {
        "plain": step(Samples(samples.images, samples.labels)),
        "explained by plain PyTorch": step(samples, written=True),
    }
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}

    def run_peers() -> None:
        for peer, run in peers.items():
            start = time.perf_counter()
            run()
            seconds[peer].append(time.perf_counter() - start)

    explained()
    benchmark.pedantic(explained, setup=run_peers, rounds=ROUNDS, warmup_rounds=1)
    mine = benchmark.stats.stats.data
    cells = [f"explained {1e3 * median(mine):.0f} ({1e3 * min(mine):.0f})"]
    for peer, all_values in seconds.items():
        values = all_values[-len(mine) :]
        ratio = median(own / theirs for own, theirs in zip(mine, values, strict=True))
        least = min(mine) / min(values)
        benchmark.extra_info[peer] = {"ms a step": 1e3 * median(values), "ratio": ratio, "ratio of least": least}
        cells.append(f"{peer} {1e3 * median(values):.0f} ({1e3 * min(values):.0f}): {ratio:.3f}× ({least:.3f}×) of it")
    print(f"\nResNet-18, {BATCH} of {SIZE}², ms a step, median (least): {'; '.join(cells)}")

"""`cam_loss`, forward and backward, on the CPU against plain PyTorch with autograd.

    OMP_NUM_THREADS=2 pytest benchmarks/bench_cam_loss.py --benchmark-only -s

On 2 cores, float32; µs an image, median of 15 rounds (least), and how many times longer plain PyTorch takes:

| | cam_loss | plain PyTorch |
|---|---|---|
| B=64 C=1024 7×7→224² | 107 (85) | 20× (22×) |
| B=64 C=2048 7×7→224² | 163 (103) | 9.6× (13×) |
| B=64 C=1024 14×14→224² | 273 (185) | 6.2× (7.9×) |
| B=8 C=512 32×32→1024² | 899 (687) | 59× (66×) |

Run against ours alone, float32 takes 77 µs at 7×7→224² and bf16 channels_last 52.

The peer is the loss as one writes it: class map, ReLU, min-max, F.interpolate, min-max, soft Dice, then autograd
through all of it. It runs once before each timed round of ours, so that a busy machine slows both alike. Before
anything is timed, losses and both gradients are compared.

Why: plain PyTorch writes and reads a map of B·H·W numbers a dozen times in each direction and keeps several for the
backward pass. Here the ROI enters by h·w numbers an image, popcounts of its packed words; a sample's features are read
once; backward is two outer products.
"""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from egal_kernels import cam_loss, pack_roi

# B, C, h×w, H×W; DenseNet-121 and ResNet-50 at 224², a stride-16 map, a large image
SHAPES = [(64, 1024, 7, 224), (64, 2048, 7, 224), (64, 1024, 14, 224), (8, 512, 32, 1024)]
CLASSES = 3


def inputs(batch: int, channels: int, side: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smooth non-negative features, a linear head's weight, a disc of 5 % of the image for each ROI, classes."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, channels, 4, 4, generator=g) - 0.3
    features = F.interpolate(coarse, (side, side), mode="bicubic").relu()  # bilinear would repeat its border: ties
    weight = torch.randn(CLASSES, channels, generator=g) / 8
    centre = torch.randint(size // 8, size - size // 8, (batch, 2, 1), generator=g)
    y = torch.arange(size)
    distance = (y - centre[:, 0])[:, :, None] ** 2 + (y - centre[:, 1])[:, None] ** 2
    classes = torch.randint(CLASSES, (batch,), generator=g)
    return features.requires_grad_(), weight.requires_grad_(), distance < (size / 8) ** 2, classes


def min_max(maps: Tensor) -> Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def eager(features: Tensor, weight: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
    """The loss in plain PyTorch: float32, the map resized to full resolution."""
    class_map = torch.einsum("nc,nchw->nhw", weight[classes] / features[0, 0].numel(), features)
    low = min_max(class_map.relu())
    cam = min_max(F.interpolate(low[:, None], mask.shape[1:], mode="bilinear")[:, 0])
    return 1 - 2 * (cam * mask).sum((1, 2)) / (cam.sum((1, 2)) + mask.sum((1, 2)))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).abs().max() <= 1e-4 * y.abs().max()


def label(shape: tuple[int, int, int, int]) -> str:
    batch, channels, side, size = shape
    return f"B={batch} C={channels} {side}×{side}→{size}²"


def compare(benchmark, name: str, ours: Callable[[], object], peer: Callable[[], object], batch: int) -> None:
    """Time `ours` by pytest-benchmark, the peer once before each round; print medians and least times, and ratios."""
    seconds: list[float] = []

    def run_peer() -> None:
        start = time.perf_counter()
        peer()
        seconds.append(time.perf_counter() - start)

    ours()
    run_peer()
    benchmark.pedantic(ours, setup=run_peer, rounds=15)
    mine, theirs = benchmark.stats.stats.data, seconds[1:]
    (middle, slow), (least, slowest) = ((f(mine) / batch * 1e6, f(theirs) / f(mine)) for f in (median, min))
    benchmark.extra_info |= {"µs an image": middle, "times longer, median and least": [slow, slowest]}
    print(f"\n{name}: {middle:.0f} ({least:.0f}) µs an image, plain PyTorch {slow:.1f}× ({slowest:.1f}×)")


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_forward_and_backward(benchmark, shape):
    features, weight, mask, classes = inputs(*shape)
    roi = pack_roi(mask)

    def ours() -> tuple[Tensor, ...]:
        loss = cam_loss(features, weight, roi, classes)
        return loss, *torch.autograd.grad(loss.sum(), (features, weight))

    def peer() -> tuple[Tensor, ...]:
        loss = eager(features, weight, mask, classes)
        return loss, *torch.autograd.grad(loss.sum(), (features, weight))

    assert_same(ours(), peer())
    compare(benchmark, f"forward and backward, {label(shape)}", ours, peer, shape[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtypes_and_layouts(benchmark, dtype, layout):
    features, weight, mask, classes = inputs(*SHAPES[0])
    given, roi = features.detach().to(dtype).contiguous(memory_format=layout).requires_grad_(), pack_roi(mask)

    def run(features: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(cam_loss(features, weight, roi, classes).sum(), (features, weight))

    assert run(given)[0].dtype == dtype
    name = f"{dtype}, {layout}, against contiguous float32 of ours"
    compare(benchmark, name, lambda: run(given), lambda: run(features), SHAPES[0][0])

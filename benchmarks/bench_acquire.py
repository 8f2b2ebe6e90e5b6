"""`acquire` on the CPU against plain PyTorch, torch.compile, and pytorch-grad-cam → resize → threshold → Dice.

    OMP_NUM_THREADS=2 pytest benchmarks/bench_acquire.py --benchmark-only -s

On 2 cores, float32; median µs an image of 25 rounds, and how many times longer the peers take:

| | acquire | plain PyTorch | torch.compile | pytorch-grad-cam |
|---|---|---|---|---|
| whole op, B=64 C=1024 7×7→224² | 19 | 24× | 12× | 55× |
| whole op, B=64 C=2048 7×7→224² | 32 | 14× | 7.6× | |
| whole op, B=64 C=1024 14×14→224² | 97 | 8.0× | 3.5× | |
| whole op, B=8 C=512 32×32→1024² | 254 | 137× | 26× | |
| epilogue, 7×7→224² | 11 | 66×, 58× | 20× | |
| epilogue, 14×14→224² | 11 | 39× | 17× | |
| epilogue, 32×32→1024² | 102 | 280× | 52× | |

The whole op of C=2048 takes 0.85 of the time of its class maps alone by GEMM, and 3.3 times that of one sum over the
features. At 14×14 the features are 800 kB a sample, more than a core's cache: reading them is most of it. bf16 and f16
take 0.8 of float32's time. pack_roi: 7 µs an image.

One thread takes 20 µs an image, 8 of them for the head, and a call some 0.15 ms. The second of these two cores added a
quarter: they seem to share one core's units. Directly after other operations of PyTorch, whose threads spin on a core
for a while, it takes twice as long.

In each round every contender runs for 20 ms before its timed call, so that a busy machine slows all alike; a line gives
medians, of the ratios too. Before anything is timed, counts are compared: at most 1 pixel in 10⁴ may differ (features
are summed in another order), and none where the class map is given.

Why: plain PyTorch writes and reads a float32 map of B·H·W a dozen times. Here a sample's features are read once, its
class map never leaves the cache, and no upsampled map exists: O(h·W) interval ends instead of O(H·W) pixels, and
popcounts of the packed ROI.
"""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from egal_kernels import Acquisition, PackedRoi, acquire, pack_roi

# B, C, h×w, H×W; DenseNet-121 and ResNet-50 at 224², a stride-16 map, a large image
SHAPES = [(64, 1024, 7, 224), (64, 2048, 7, 224), (64, 1024, 14, 224), (8, 512, 32, 1024)]
CLASSES = 3


def blobs(batch: int, channels: int, side: int, g: torch.Generator) -> Tensor:
    """Smooth, sparse features: at 7×7 the columns of a thresholded CAM change sides 257 times an image and it covers
    17 %, as do the CAMs of chest X-rays and brain MRI by a trained head (241 and 259 times, 12 and 18 %)."""
    coarse = torch.rand(batch, channels, 3, 3, generator=g) - 0.5
    return F.interpolate(coarse, (side, side), mode="bilinear").relu().square()


def inputs(batch: int, channels: int, side: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blobs for features, a linear head, and a disc of 5 % of the image for each ROI."""
    g = torch.Generator().manual_seed(0)
    features = blobs(batch, channels, side, g)
    weight, bias = torch.randn(CLASSES, channels, generator=g) / 8, torch.randn(CLASSES, generator=g)
    centre = torch.randint(size // 8, size - size // 8, (batch, 2, 1), generator=g)
    y = torch.arange(size)
    distance = (y - centre[:, 0])[:, :, None] ** 2 + (y - centre[:, 1])[:, None] ** 2
    return features, weight, bias, distance < (size / 8) ** 2


def overlap(cam: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Counts and soft sums of full-resolution maps [B, H, W] and masks, as plain PyTorch does them."""
    hit = cam >= 0.5
    return ((hit & mask).sum((1, 2)), hit.sum((1, 2)), mask.sum((1, 2)),
            (cam * mask).sum((1, 2)), cam.sum((1, 2)) + mask.sum((1, 2)))  # fmt: skip


def min_max(maps: Tensor) -> Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def epilogue(class_map: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    low = min_max(class_map.relu())
    return overlap(min_max(F.interpolate(low[:, None], mask.shape[1:], mode="bilinear")[:, 0]), mask)


@torch.no_grad()
def eager(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The whole op in plain PyTorch: float32, the map resized to full resolution."""
    logits = F.linear(features.mean((2, 3)), weight, bias)
    log_p = logits.log_softmax(1)
    predicted = logits.argmax(1)
    class_map = torch.einsum("nc,nchw->nhw", weight[predicted] / features[0, 0].numel(), features)
    return logits, -(log_p.exp() * log_p).sum(1), predicted, *epilogue(class_map, mask)


class Head(torch.nn.Module):
    """A linear head behind the layer that pytorch-grad-cam hooks; no trunk, so only the explanation is timed."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.features = torch.nn.Conv2d(weight.shape[1], weight.shape[1], 1, groups=weight.shape[1], bias=False)
        torch.nn.init.ones_(self.features.weight)
        self.fc = torch.nn.Linear(weight.shape[1], weight.shape[0])
        self.fc.weight.data, self.fc.bias.data = weight.clone(), bias.clone()

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.features(features).mean((2, 3)))


def library(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """pytorch-grad-cam of the predicted class, resized by cv2 to the mask, then thresholded."""
    net = Head(weight, bias).eval()
    cam = GradCAM(model=net, target_layers=[net.features])

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            predicted = F.linear(features.mean((2, 3)), weight, bias).argmax(1)
        low = cam(features, [ClassifierOutputTarget(int(k)) for k in predicted])
        full = F.interpolate(torch.from_numpy(low)[:, None], mask.shape[1:], mode="bilinear")[:, 0]
        return overlap(min_max(full), mask)

    return run


def assert_same(out: Acquisition, counts: tuple[Tensor, ...], pixels: int) -> None:
    for ours, theirs in zip((out.intersection, out.cam_area, out.roi_area), counts, strict=False):
        assert (ours - theirs).abs().max() <= pixels * 1e-4


def compare(benchmark, name: str, ours: Callable, peers: dict[str, Callable], batch: int, rounds: int = 25) -> None:
    """Time `ours` by pytest-benchmark and every peer in each of its rounds; print medians, and ratios by round.

    Before its timed call each runs untimed for 20 ms: what the others left in the caches, and their threads that still
    spin, would count against it.
    """
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}

    def warm(run: Callable) -> None:
        stop = time.perf_counter() + 0.02
        while time.perf_counter() < stop:
            run()

    def run_peers() -> None:
        for peer, run in peers.items():
            warm(run)
            start = time.perf_counter()
            run()
            seconds[peer].append(time.perf_counter() - start)
        warm(ours)

    ours()
    benchmark.pedantic(ours, setup=run_peers, rounds=rounds)
    mine = benchmark.stats.stats.data
    cells = [f"acquire {median(mine) / batch * 1e6:.1f}"]
    for peer, values in seconds.items():
        ratio = median(theirs / own for theirs, own in zip(values[-len(mine) :], mine, strict=True))
        benchmark.extra_info[peer] = {"µs an image": median(values) / batch * 1e6, "ratio": ratio}
        cells.append(f"{peer} {median(values) / batch * 1e6:.1f} = {ratio:.1f}×")
    print(f"\n{name}, median µs an image: {'; '.join(cells)}")


def label(shape: tuple[int, int, int, int]) -> str:
    batch, channels, side, size = shape
    return f"B={batch} C={channels} {side}×{side}→{size}²"


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_whole_op(benchmark, shape):
    batch, _, _, size = shape
    features, weight, bias, mask = inputs(*shape)
    roi = pack_roi(mask)
    compiled = torch.compile(eager)
    expected = eager(features, weight, bias, mask)
    out = acquire(features, weight, bias, roi, backend="cpu")
    assert torch.equal(out.predicted, expected[2])
    assert_same(out, expected[3:], size * size)
    peers = {
        "eager": lambda: eager(features, weight, bias, mask),
        "torch.compile": lambda: compiled(features, weight, bias, mask),
        "reference": lambda: acquire(features, weight, bias, roi, backend="reference"),
    }
    if shape == SHAPES[0]:
        peers["pytorch-grad-cam"] = library(features, weight, bias, mask)
    compare(benchmark, f"whole op, {label(shape)}", lambda: acquire(features, weight, bias, roi), peers, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtypes_and_layouts(benchmark, dtype, layout):
    features, weight, bias, mask = inputs(*SHAPES[0])
    roi = pack_roi(mask)
    plain = acquire(features, weight, bias, roi)
    given = features.to(dtype).contiguous(memory_format=layout)
    peers = {"contiguous float32": lambda: acquire(features, weight, bias, roi)}
    assert torch.equal(acquire(given, weight, bias, roi).roi_area, plain.roi_area)
    name = f"{dtype}, {layout}, {label(SHAPES[0])}"
    compare(benchmark, name, lambda: acquire(given, weight, bias, roi), peers, 64)


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_epilogue(benchmark, shape):
    """From class maps that are given: one channel of weight 1."""
    batch, _, side, size = shape
    mask, roi = (lambda m: (m, pack_roi(m)))(inputs(batch, 1, side, size)[3])
    g = torch.Generator().manual_seed(1)
    maps = blobs(batch, 1, side, g)
    head = {"alpha": torch.ones(batch, 1), "logits": torch.randn(batch, CLASSES, generator=g)}

    def ours(roi: PackedRoi = roi, backend: str = "cpu") -> Acquisition:
        return acquire(maps, None, None, roi, **head, backend=backend)

    reference = ours(backend="reference")
    for name in ("intersection", "cam_area", "roi_area"):
        assert torch.equal(getattr(ours(), name), getattr(reference, name))
    compiled = torch.compile(epilogue)
    assert_same(ours(), epilogue(maps[:, 0], mask), size * size)
    peers = {"eager": lambda: epilogue(maps[:, 0], mask), "torch.compile": lambda: compiled(maps[:, 0], mask)}
    compare(benchmark, f"epilogue, {label(shape)}", ours, peers, batch)


def test_whole_op_against_its_own_gemm(benchmark):
    """The K class maps alone, by torch.matmul: no logits, no resize, no counts."""
    features, weight, bias, mask = inputs(*SHAPES[1])
    roi, flat = pack_roi(mask), features.flatten(2)
    out = acquire(features, weight, bias, roi)
    maps = torch.matmul(weight, flat)
    torch.testing.assert_close(maps.mean(2) + bias, out.logits, rtol=1e-4, atol=1e-4)
    peers = {"class maps by GEMM": lambda: torch.matmul(weight, flat), "sum of features": features.sum}
    name = f"whole op, {label(SHAPES[1])}"
    compare(benchmark, name, lambda: acquire(features, weight, bias, roi), peers, 64)


def test_pack_roi(benchmark):
    mask = inputs(64, 1, 7, 224)[3]
    assert torch.equal(pack_roi(mask).unpack(), mask)
    compare(benchmark, "pack_roi, 64 of 224²", lambda: pack_roi(mask), {"mask.sum": lambda: mask.sum((1, 2))}, 64)

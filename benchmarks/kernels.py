"""The kernels on the CPU, 2 threads, float32, against what one writes without them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.registry import Absent, Case, benchmark
from egal_kernels import Acquisition, acquire, cam_loss, pack_roi

Shape = tuple[int, int, int, int]  # B, C, h = w, H = W

# DenseNet-121 and ResNet-50 at 224², a stride-16 map, a large image
SHAPES = {
    "B=64 C=1024 7×7→224²": (64, 1024, 7, 224),
    "B=64 C=2048 7×7→224²": (64, 2048, 7, 224),
    "B=64 C=1024 14×14→224²": (64, 1024, 14, 224),
    "B=8 C=512 32×32→1024²": (8, 512, 32, 1024),
}
FIRST, DEEP, *_ = SHAPES.values()
HALVES = {
    f"{str(dtype).removeprefix('torch.')} {str(layout).removeprefix('torch.')}": (dtype, layout)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for layout in (torch.contiguous_format, torch.channels_last)
}
CLASSES = 3
THREADS = 2


@benchmark(SHAPES, rounds=25)
def whole_op(shape: Shape, home: Path) -> Case:
    """`acquire` against plain PyTorch and torch.compile of it.

        python -m benchmarks kernels/whole-op

    On 2 cores, median µs an image, and how many times longer the others take:

    | | acquire | plain PyTorch | torch.compile |
    |---|---|---|---|
    | B=64 C=1024 7×7→224² | 10 | 48× | 16× |
    | B=64 C=2048 7×7→224² | 14 | 19× | 12× |
    | B=64 C=1024 14×14→224² | 26 | 9.1× | 6.8× |
    | B=8 C=512 32×32→1024² | 120 | 146× | 37× |

    Why: plain PyTorch writes and reads a float32 map of B·H·W a dozen times, and a good part of its time is page faults
    of those maps: as they fall it takes 290 to 600 µs at the first shape, 30 to 62 times ours, and at 14×14 240 to 500.
    Here a sample's features are read once, about as fast as a sum over them, its class map never leaves the cache, and
    no upsampled map exists: O(h·W) interval ends instead of O(H·W) pixels, and popcounts of the packed ROI. At 14×14
    the features are 800 kB a sample: reading them is most of it.
    """
    features, weight, bias, mask = scenes(*shape)
    roi = pack_roi(mask)
    compiled = torch.compile(plain, dynamic=False)

    def check() -> None:
        out, expected = acquire(features, weight, bias, roi), plain(features, weight, bias, mask)
        assert torch.equal(out.predicted, expected[2])
        assert_counts(out, expected[3:], mask)
        assert_counts(out, compiled(features, weight, bias, mask)[3:], mask)

    return Case(
        {
            "acquire": lambda: acquire(features, weight, bias, roi),
            "plain PyTorch": lambda: plain(features, weight, bias, mask),
            "torch.compile": lambda: compiled(features, weight, bias, mask),
        },
        len(features),
        check,
    )


@benchmark({name: shape for name, shape in SHAPES.items() if shape == FIRST}, rounds=25)
def library(shape: Shape, home: Path) -> Case:
    """The whole op against pytorch-grad-cam → resize → threshold → Dice.

        python -m benchmarks kernels/library

    On 2 cores it takes 93 times as long.

    Why: a backward pass, then maps one by one in NumPy, then passes over maps at full resolution.
    """
    if not find_spec("pytorch_grad_cam"):
        raise Absent("needs pytorch-grad-cam: pip install 'egal-bench[peers]'")
    features, weight, bias, mask = scenes(*shape)
    roi, run = pack_roi(mask), pytorch_grad_cam(features, weight, bias, mask)
    return Case(
        {"acquire": lambda: acquire(features, weight, bias, roi), "pytorch-grad-cam": run},
        len(features),
        lambda: assert_counts(acquire(features, weight, bias, roi), run(), mask),
    )


@benchmark({name: shape for name, shape in SHAPES.items() if shape == DEEP}, rounds=25)
def class_maps(shape: Shape, home: Path) -> Case:
    """The whole op against its K class maps alone, by torch.matmul: no logits, no resize, no counts; and one sum.

        python -m benchmarks kernels/class-maps

    On 2 cores the class maps alone take 0.71 of the time of the whole op, one sum over the features 0.55.

    Why: both are bound by reading 400 kB a sample; the op adds 5 µs of one thread an image.
    """
    features, weight, bias, mask = scenes(*shape)
    roi, flat = pack_roi(mask), features.flatten(2)

    def check() -> None:
        logits = acquire(features, weight, bias, roi).logits
        torch.testing.assert_close(torch.matmul(weight, flat).mean(2) + bias, logits, rtol=1e-4, atol=1e-4)

    return Case(
        {
            "acquire": lambda: acquire(features, weight, bias, roi),
            "class maps by GEMM": lambda: torch.matmul(weight, flat),
            "sum of features": features.sum,
        },
        len(features),
        check,
    )


@benchmark({re.sub(r" C=\d+", "", name): shape for name, shape in SHAPES.items() if shape != DEEP}, rounds=25)
def epilogue(shape: Shape, home: Path) -> Case:
    """What follows the class maps: these are given, as one channel of weight 1.

        python -m benchmarks kernels/epilogue

    On 2 cores, median µs an image, and how many times longer the others take:

    | | acquire | plain PyTorch | torch.compile |
    |---|---|---|---|
    | 7×7→224² | 4.5 | 92× | 30× |
    | 14×14→224² | 6.4 | 81× | 22× |
    | 32×32→1024² | 48 | 346× | 80× |

    Why: as of the whole op; of 4.5 µs, 0.9 is what a call costs, spread over its images.
    """
    batch, _, side, size = shape
    _, _, _, mask = scenes(batch, 1, side, size)
    roi, g = pack_roi(mask), torch.Generator().manual_seed(1)
    maps = blobs(batch, 1, side, g)
    head = {"alpha": torch.ones(batch, 1), "logits": torch.randn(batch, CLASSES, generator=g)}
    compiled = torch.compile(overlap, dynamic=False)

    def check() -> None:
        out, reference = (acquire(maps, None, None, roi, **head, backend=name) for name in ("cpu", "reference"))
        for name in ("intersection", "cam_area", "roi_area"):
            assert torch.equal(getattr(out, name), getattr(reference, name)), name
        assert_counts(out, overlap(maps[:, 0], mask), mask)
        assert_counts(out, compiled(maps[:, 0], mask), mask)

    return Case(
        {
            "acquire": lambda: acquire(maps, None, None, roi, **head),
            "plain PyTorch": lambda: overlap(maps[:, 0], mask),
            "torch.compile": lambda: compiled(maps[:, 0], mask),
        },
        batch,
        check,
    )


@benchmark(HALVES, rounds=25)
def dtypes(how: tuple[torch.dtype, torch.memory_format], home: Path) -> Case:
    """The whole op on other dtypes and layouts, against contiguous float32, at B=64 C=1024 7×7→224².

        python -m benchmarks kernels/dtypes

    The result is the row of README.md. Why: halves are half the bytes to read, widened in registers.
    """
    features, weight, bias, mask = scenes(*FIRST)
    roi = pack_roi(mask)
    given = features.to(how[0]).contiguous(memory_format=how[1])

    def check() -> None:
        out, expected = acquire(given, weight, bias, roi), plain(given.float(), weight, bias, mask)
        assert torch.equal(out.predicted, expected[2])
        assert_counts(out, expected[3:], mask)

    return Case(
        {
            "acquire": lambda: acquire(given, weight, bias, roi),
            "contiguous float32": lambda: acquire(features, weight, bias, roi),
        },
        len(features),
        check,
    )


@benchmark({"64 masks of 224²": FIRST}, rounds=25)
def packing(shape: Shape, home: Path) -> Case:
    """`pack_roi` of bool masks against one sum over them.

        python -m benchmarks kernels/packing

    The result is the row of README.md. Why: a mask is read once, eight rows at a time, and an eighth of it written.
    """
    mask = scenes(*shape)[3]

    def check() -> None:
        assert torch.equal(pack_roi(mask).unpack(), mask)

    return Case({"pack_roi": lambda: pack_roi(mask), "mask.sum": lambda: mask.sum((1, 2))}, len(mask), check)


@benchmark(SHAPES, rounds=15)
def loss(shape: Shape, home: Path) -> Case:
    """`cam_loss`, forward and backward, against plain PyTorch with autograd.

        python -m benchmarks kernels/loss

    On 2 cores, median µs an image, and how many times longer plain PyTorch takes:

    | | cam_loss | plain PyTorch |
    |---|---|---|
    | B=64 C=1024 7×7→224² | 25 | 40× |
    | B=64 C=2048 7×7→224² | 44 | 21× |
    | B=64 C=1024 14×14→224² | 97 | 11× |
    | B=8 C=512 32×32→1024² | 281 | 142× |

    Why: plain PyTorch writes and reads a map of B·H·W numbers a dozen times in each direction and keeps several for the
    backward pass. Here the ROI enters by h·w numbers an image, popcounts of its packed words; a sample's features are
    read once; backward is two outer products.
    """
    features, weight, _, mask = scenes(*shape)
    # blobs repeat the border's cells: maxima that tie share their slope, here and in PyTorch, in different parts
    features = features + torch.rand(features.shape, generator=torch.Generator().manual_seed(2)) / 100
    features, weight = features.requires_grad_(), weight.requires_grad_()
    roi, labels = pack_roi(mask), torch.arange(len(mask)) % CLASSES

    def ours() -> tuple[Tensor, ...]:
        return gradients(cam_loss(features, weight, roi, labels), features, weight)

    def peer() -> tuple[Tensor, ...]:
        return gradients(plain_loss(features, weight, mask, labels), features, weight)

    def check() -> None:
        for x, y in zip(ours(), peer(), strict=True):
            assert (x - y).abs().max() <= 1e-4 * y.abs().max()

    return Case({"cam_loss": ours, "plain PyTorch": peer}, len(mask), check)


def blobs(batch: int, channels: int, side: int, g: torch.Generator) -> Tensor:
    """Smooth, sparse features: at 7×7 the columns of a thresholded CAM change sides 257 times an image and it covers
    17 %, as do the CAMs of chest X-rays and brain MRI by a trained head (241 and 259 times, 12 and 18 %)."""
    coarse = torch.rand(batch, channels, 3, 3, generator=g) - 0.5
    return F.interpolate(coarse, (side, side), mode="bilinear").relu().square()


def scenes(batch: int, channels: int, side: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blobs for features, a linear head, and a disc of 5 % of the image for each ROI; sets the number of threads."""
    torch.set_num_threads(THREADS)
    g = torch.Generator().manual_seed(0)
    features = blobs(batch, channels, side, g)
    weight, bias = torch.randn(CLASSES, channels, generator=g) / 8, torch.randn(CLASSES, generator=g)
    centre = torch.randint(size // 8, size - size // 8, (batch, 2, 1), generator=g)
    y = torch.arange(size)
    distance = (y - centre[:, 0])[:, :, None] ** 2 + (y - centre[:, 1])[:, None] ** 2
    return features, weight, bias, distance < (size / 8) ** 2


@torch.no_grad()
def plain(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The whole op in plain PyTorch: float32, the map resized to full resolution."""
    logits = F.linear(features.mean((2, 3)), weight, bias)
    log_p = logits.log_softmax(1)
    predicted = logits.argmax(1)
    class_map = torch.einsum("nc,nchw->nhw", weight[predicted] / features[0, 0].numel(), features)
    return logits, -(log_p.exp() * log_p).sum(1), predicted, *overlap(class_map, mask)


def overlap(class_map: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return count(full_size(class_map, mask), mask)


def full_size(class_map: Tensor, mask: Tensor) -> Tensor:
    """The normalised map [B, H, W] of a class map, by the default convention."""
    low = min_max(class_map.relu())
    return min_max(F.interpolate(low[:, None], mask.shape[1:], mode="bilinear")[:, 0])


def count(cam: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Counts and soft sums of full-resolution maps [B, H, W] and masks, as plain PyTorch does them."""
    hit = cam >= 0.5
    return ((hit & mask).sum((1, 2)), hit.sum((1, 2)), mask.sum((1, 2)),
            (cam * mask).sum((1, 2)), cam.sum((1, 2)) + mask.sum((1, 2)))  # fmt: skip


def min_max(maps: Tensor) -> Tensor:
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def plain_loss(features: Tensor, weight: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    class_map = torch.einsum("nc,nchw->nhw", weight[labels] / features[0, 0].numel(), features)
    cam = full_size(class_map, mask)
    return 1 - 2 * (cam * mask).sum((1, 2)) / (cam.sum((1, 2)) + mask.sum((1, 2)))


def gradients(loss: Tensor, features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss.mean(), (features, weight))


def pytorch_grad_cam(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """pytorch-grad-cam of the predicted class, resized to the mask, then thresholded. No trunk: what is timed is the
    explanation alone, of a layer that passes its input on."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    channels = weight.shape[1]
    layer = torch.nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    torch.nn.init.ones_(layer.weight)
    fc = torch.nn.Linear(channels, len(weight))
    fc.weight.data, fc.bias.data = weight.clone(), bias.clone()
    net = torch.nn.Sequential(layer, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), fc).eval()
    cam = GradCAM(model=net, target_layers=[layer])

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            predicted = F.linear(features.mean((2, 3)), weight, bias).argmax(1)
        low = torch.from_numpy(cam(features, [ClassifierOutputTarget(int(k)) for k in predicted]))
        full = F.interpolate(low[:, None], mask.shape[1:], mode="bilinear")[:, 0]
        return count(min_max(full), mask)

    return run


def assert_counts(out: Acquisition, expected: tuple[Tensor, ...], mask: Tensor) -> None:
    """At most 1 pixel in 10⁵ differs: features are summed in another order, and the h/2 pixels of a column that the
    resize clamps at a border flip together."""
    for ours, theirs in zip((out.intersection, out.cam_area, out.roi_area), expected, strict=False):
        assert (ours - theirs).abs().sum() <= mask.numel() * 1e-5

"""The kernels on the CPU, in two threads and float32, against what one would write without them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.registry import Absent, Case, benchmark
from egal_kernels import Acquisition, acquire, cam_loss, pack_roi

Shape = tuple[int, int, int, int]  # B, C, h = w, H = W

# maps of DenseNet-121 and ResNet-50 at 224², a map of stride 16, and a large image
SHAPES = {
    "B=64 C=1024 7×7→224²": (64, 1024, 7, 224),
    "B=64 C=2048 7×7→224²": (64, 2048, 7, 224),
    "B=64 C=1024 14×14→224²": (64, 1024, 14, 224),
    "B=8 C=512 32×32→1024²": (8, 512, 32, 1024),
}
FIRST, DEEP, *_ = SHAPES.values()
LAYOUTS = {
    f"{str(dtype).removeprefix('torch.')} {str(layout).removeprefix('torch.')}": (dtype, layout)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for layout in (torch.contiguous_format, torch.channels_last)
}
CLASSES = 3
THREADS = 2
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # on Linux, such as "32768K"


@benchmark(SHAPES, rounds=25)
def whole_op(shape: Shape, home: Path) -> Case:
    """`acquire` on features that are in the cache as far as they fit, as after the layer that made them.

        python -m benchmarks kernels/whole-op

    "Lean PyTorch" is the best that we could write in PyTorch: it reads the features once and passes over the maps at
    full resolution as seldom as it can. "torch.compile" is the compiled lean version. "Plain PyTorch" follows the
    definition step by step, as one would write it first. "Reading the features" sums them and does nothing else: the
    time that no implementation can undercut.

    Why: PyTorch writes and reads float32 maps of B·H·W, and spends a good part of its time on page faults of those
    maps. `acquire` reads the features of a sample once, and its class map never leaves the cache. There is no upsampled
    map: O(h·W) ends of intervals take the place of O(H·W) pixels, and the overlap is counted by popcounts of the packed
    ROI. With 14×14 positions, reading the features is most of it.
    """
    features, weight, bias, mask = scenes(*shape)
    return op_case([features], weight, bias, mask)


@benchmark(SHAPES, rounds=25)
def whole_op_out_of_cache(shape: Shape, home: Path) -> Case:
    """`acquire` on features that come from memory: each run takes other features, until no cache holds the first.

        python -m benchmarks kernels/whole-op-out-of-cache

    The contenders are those of kernels/whole-op. All of them take their features from one cycle, so a run never meets
    what the run of another contender has left in the cache.

    Why: the reasons are those of kernels/whole-op, but here every implementation waits for the features. Reading them
    is therefore a larger share of the time of `acquire`, and the others lose less against it.
    """
    features, weight, bias, mask = scenes(*shape)
    copies = -(-beyond_cache() // (features.numel() * features.element_size()))
    return op_case([features.clone() for _ in range(copies)], weight, bias, mask)


@benchmark({name: shape for name, shape in SHAPES.items() if shape == FIRST}, rounds=25)
def library(shape: Shape, home: Path) -> Case:
    """`acquire` against pytorch-grad-cam → resize → threshold → Dice.

        python -m benchmarks kernels/library

    Why: pytorch-grad-cam runs a backward pass, then computes maps one by one in NumPy, then passes over maps at full
    resolution several times.
    """
    if not find_spec("pytorch_grad_cam"):
        raise Absent("needs pytorch-grad-cam: pip install 'egal-bench[peers]'")
    features, weight, bias, mask = scenes(*shape)
    roi, run = pack_roi(mask), pytorch_grad_cam(features, weight, bias, mask)

    def check() -> None:
        assert_counts(acquire(features, weight, bias, roi), run(), mask)

    contenders = {"acquire": lambda: acquire(features, weight, bias, roi), "pytorch-grad-cam": run}
    return Case(contenders=contenders, samples=len(features), check=check)


@benchmark({name: shape for name, shape in SHAPES.items() if shape == DEEP}, rounds=25)
def class_maps(shape: Shape, home: Path) -> Case:
    """`acquire` against its K class maps alone, by torch.matmul, and against one sum over the features.

        python -m benchmarks kernels/class-maps

    The class maps alone have no logits, no resize and no counts.

    Why the difference is small: all three are bound by reading the features. What `acquire` computes besides stays in
    the cache.
    """
    features, weight, bias, mask = scenes(*shape)
    roi, flat = pack_roi(mask), features.flatten(2)

    def check() -> None:
        logits = acquire(features, weight, bias, roi).logits
        torch.testing.assert_close(torch.matmul(weight, flat).mean(2) + bias, logits, rtol=1e-4, atol=1e-4)

    contenders = {
        "acquire": lambda: acquire(features, weight, bias, roi),
        "class maps by GEMM": lambda: torch.matmul(weight, flat),
        "sum of features": features.sum,
    }
    return Case(contenders=contenders, samples=len(features), check=check)


@benchmark({re.sub(r" C=\d+", "", name): shape for name, shape in SHAPES.items() if shape != DEEP}, rounds=25)
def epilogue(shape: Shape, home: Path) -> Case:
    """What `acquire` does after the class maps, which are given as the only channel of a head with weight 1.

        python -m benchmarks kernels/epilogue

    Why: the reasons are those of kernels/whole-op. A part of our time is the fixed cost of a call.
    """
    batch, _, side, size = shape
    _, _, _, mask = scenes(batch, 1, side, size)
    roi, generator = pack_roi(mask), torch.Generator().manual_seed(1)
    maps = blobs(batch, 1, side, generator)
    head = {"alpha": torch.ones(batch, 1), "logits": torch.randn(batch, CLASSES, generator=generator)}
    compiled = torch.compile(overlap, dynamic=False)

    def check() -> None:
        out, reference = (acquire(maps, None, None, roi, **head, backend=name) for name in ("cpu", "reference"))
        for name in ("intersection", "cam_area", "roi_area"):
            assert torch.equal(getattr(out, name), getattr(reference, name)), name
        assert_counts(out, overlap(maps[:, 0], mask), mask)
        assert_counts(out, compiled(maps[:, 0], mask), mask)

    contenders = {
        "acquire": lambda: acquire(maps, None, None, roi, **head),
        "plain PyTorch": lambda: overlap(maps[:, 0], mask),
        "torch.compile": lambda: compiled(maps[:, 0], mask),
    }
    return Case(contenders=contenders, samples=batch, check=check)


@benchmark(LAYOUTS, rounds=25)
def dtypes(layout: tuple[torch.dtype, torch.memory_format], home: Path) -> Case:
    """`acquire` on features of other dtypes and memory formats, against contiguous float32, at the first shape.

        python -m benchmarks kernels/dtypes

    Why: halves are half as many bytes to read, and are widened in registers.
    """
    features, weight, bias, mask = scenes(*FIRST)
    roi, (dtype, memory_format) = pack_roi(mask), layout
    converted = features.to(dtype).contiguous(memory_format=memory_format)

    def check() -> None:
        out, expected = acquire(converted, weight, bias, roi), plain(converted.float(), weight, bias, mask)
        assert torch.equal(out.predicted, expected[2])
        assert_counts(out, expected[3:], mask)

    contenders = {
        "acquire": lambda: acquire(converted, weight, bias, roi),
        "contiguous float32": lambda: acquire(features, weight, bias, roi),
    }
    return Case(contenders=contenders, samples=len(features), check=check)


@benchmark({"64 masks of 224²": FIRST}, rounds=25)
def packing(shape: Shape, home: Path) -> Case:
    """`pack_roi` of bool masks, against one sum over them.

        python -m benchmarks kernels/packing

    Why: a mask is read once, eight rows at a time, and an eighth of it is written.
    """
    mask = scenes(*shape)[3]

    def check() -> None:
        assert torch.equal(pack_roi(mask).unpack(), mask)

    contenders = {"pack_roi": lambda: pack_roi(mask), "mask.sum": lambda: mask.sum((1, 2))}
    return Case(contenders=contenders, samples=len(mask), check=check)


@benchmark(SHAPES, rounds=15)
def loss(shape: Shape, home: Path) -> Case:
    """`cam_loss`, forward and backward, against plain PyTorch with autograd.

        python -m benchmarks kernels/loss

    Why: plain PyTorch writes and reads a map of B·H·W numbers a dozen times in each direction and keeps several for the
    backward pass. In `cam_loss` the ROI enters as h·w numbers per image, popcounts of its packed words. The features of
    a sample are read once, and the backward pass is two outer products.
    """
    features, weight, _, mask = scenes(*shape)
    # blobs repeat the cells of the border; equal maxima share their gradient, but PyTorch splits it differently
    features = features + torch.rand(features.shape, generator=torch.Generator().manual_seed(2)) / 100
    features, weight = features.requires_grad_(), weight.requires_grad_()
    roi, labels = pack_roi(mask), torch.arange(len(mask)) % CLASSES

    def fused() -> tuple[Tensor, ...]:
        return gradients(cam_loss(features, weight, roi, labels), features, weight)

    def plain_pytorch() -> tuple[Tensor, ...]:
        return gradients(plain_loss(features, weight, mask, labels), features, weight)

    def check() -> None:
        for result, expected in zip(fused(), plain_pytorch(), strict=True):
            assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()

    return Case(contenders={"cam_loss": fused, "plain PyTorch": plain_pytorch}, samples=len(mask), check=check)


def blobs(batch: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Return smooth, sparse features [B, C, side, side].

    Their thresholded CAMs have about as many edges and as large an area as those of a trained network on chest X-rays
    and on brain MRI.
    """
    coarse = torch.rand(batch, channels, 3, 3, generator=generator) - 0.5
    return F.interpolate(coarse, (side, side), mode="bilinear").relu().square()


def scenes(batch: int, channels: int, side: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features [B, C, side, side], weight and bias of a head, and masks [B, size, size]; set the threads.

    The features are blobs, and each mask is a disc that covers 5 % of the image.
    """
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    features = blobs(batch, channels, side, generator)
    weight = torch.randn(CLASSES, channels, generator=generator) / 8
    bias = torch.randn(CLASSES, generator=generator)
    centre = torch.randint(size // 8, size - size // 8, (batch, 2, 1), generator=generator)
    y = torch.arange(size)
    distance = (y - centre[:, 0])[:, :, None] ** 2 + (y - centre[:, 1])[:, None] ** 2
    return features, weight, bias, distance < (size / 8) ** 2


def beyond_cache() -> int:
    """Return a number of bytes that the last cache does not hold: twice its size, where the system tells it."""
    try:
        return 2 * (int(LAST_CACHE.read_text().strip().removesuffix("K")) << 10)
    except (OSError, ValueError):
        return 512 << 20


def op_case(batches: list[Tensor], weight: Tensor, bias: Tensor, mask: Tensor) -> Case:
    """Return the case of the whole op, whose runs take one of the `batches` of equal features after the other."""
    roi, compiled, turns = pack_roi(mask), torch.compile(lean, dynamic=False), cycle(batches)

    def check() -> None:
        features = batches[0]
        out, expected = acquire(features, weight, bias, roi), plain(features, weight, bias, mask)
        assert torch.equal(out.predicted, expected[2])
        for counts in (expected, lean(features, weight, bias, mask), compiled(features, weight, bias, mask)):
            assert_counts(out, counts[3:], mask)
            torch.testing.assert_close(counts[1], out.entropy, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(counts[6], out.soft_intersection, rtol=1e-3, atol=1e-2)
            torch.testing.assert_close(counts[7], out.soft_area, rtol=1e-3, atol=1e-2)

    contenders = {
        "acquire": lambda: acquire(next(turns), weight, bias, roi),
        "lean PyTorch": lambda: lean(next(turns), weight, bias, mask),
        "torch.compile": lambda: compiled(next(turns), weight, bias, mask),
        "plain PyTorch": lambda: plain(next(turns), weight, bias, mask),
        "reading the features": lambda: next(turns).sum(),
    }
    return Case(contenders=contenders, samples=len(mask), check=check)


@torch.no_grad()
def lean(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return what `plain` returns, in as few passes over features and maps as PyTorch allows.

    The class maps of all classes are one matrix product, and the logits are their means. The last min-max is applied to
    the threshold and to the sums instead of the pixels.
    """
    maps = torch.matmul(weight, features.flatten(2)).unflatten(2, features.shape[2:])  # [B, K, h, w]
    logits = maps.mean((2, 3)) + bias
    log_p = logits.log_softmax(1)
    predicted = logits.argmax(1)
    class_map = maps[torch.arange(len(maps)), predicted] / features[0, 0].numel()
    low = min_max(class_map.relu())
    full = F.interpolate(low[:, None], mask.shape[1:], mode="bilinear").flatten(1)
    least, most = full.amin(1), full.amax(1)
    scale, inside = most - least + 1e-7, mask.flatten(1)
    hit = full >= (least + 0.5 * scale)[:, None]
    roi_area = inside.sum(1)
    soft_intersection = ((full * inside).sum(1) - least * roi_area) / scale
    soft_area = (full.sum(1) - least * full.shape[1]) / scale + roi_area
    counts = (hit & inside).sum(1), hit.sum(1), roi_area
    return logits, -(log_p.exp() * log_p).sum(1), predicted, *counts, soft_intersection, soft_area


@torch.no_grad()
def plain(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return logits, entropy, predicted class and `overlap` in plain PyTorch: float32, maps at full resolution."""
    logits = F.linear(features.mean((2, 3)), weight, bias)
    log_p = logits.log_softmax(1)
    predicted = logits.argmax(1)
    class_map = torch.einsum("nc,nchw->nhw", weight[predicted] / features[0, 0].numel(), features)
    return logits, -(log_p.exp() * log_p).sum(1), predicted, *overlap(class_map, mask)


def overlap(class_map: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the counts and soft sums of class maps [B, h, w] and masks [B, H, W]; see `count`."""
    return count(full_size(class_map, mask), mask)


def full_size(class_map: Tensor, mask: Tensor) -> Tensor:
    """Return the normalised maps [B, H, W] of class maps [B, h, w], by the default convention."""
    low = min_max(class_map.relu())
    return min_max(F.interpolate(low[:, None], mask.shape[1:], mode="bilinear")[:, 0])


def count(cam: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return intersection, CAM area and ROI area, then the soft sums, of maps and masks [B, H, W]; each is [B]."""
    hit = cam >= 0.5
    return (
        (hit & mask).sum((1, 2)), hit.sum((1, 2)), mask.sum((1, 2)),
        (cam * mask).sum((1, 2)), cam.sum((1, 2)) + mask.sum((1, 2)),
    )  # fmt: skip


def min_max(maps: Tensor) -> Tensor:
    """Return `maps` [B, H, W], each scaled to 0..1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def plain_loss(features: Tensor, weight: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Return the CAM-ROI loss [B] in plain PyTorch: 1 − soft Dice of the CAM of each label with its mask."""
    class_map = torch.einsum("nc,nchw->nhw", weight[labels] / features[0, 0].numel(), features)
    cam = full_size(class_map, mask)
    return 1 - 2 * (cam * mask).sum((1, 2)) / (cam.sum((1, 2)) + mask.sum((1, 2)))


def gradients(loss: Tensor, features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Return the loss and the gradients of its mean with respect to features and weight."""
    return loss.detach(), *torch.autograd.grad(loss.mean(), (features, weight))


def pytorch_grad_cam(features: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Return a run of pytorch-grad-cam for the predicted class, resized to the mask, then counted.

    A layer that returns its input stands for the trunk, so that the explanation alone is timed.
    """
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
    """Raise AssertionError if more than 1 pixel in 10⁵ differs.

    Some differ, because features are summed in another order, and because the h/2 pixels of a column that the resize
    clamps at a border flip together.
    """
    for counted, expected_count in zip((out.intersection, out.cam_area, out.roi_area), expected, strict=False):
        assert (counted - expected_count).abs().sum() <= mask.numel() * 1e-5

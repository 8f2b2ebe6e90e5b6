"""The CPU backend of `acquire` against the reference and against loops over pixels in binary64; its memory."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_kernels import acquire, pack_roi
from egal_kernels.acquisition import cpu, cpu_head, cpu_overlap
from egal_kernels.shared.recipes import RECIPES
from kernels.oracle import linear_head, truth
from kernels.problems import COUNTS, HALVES_AND_SINGLES, LAYOUTS, SOFT, class_maps, laid_out, masks, scene, seeds

SIDES = st.sampled_from([1, 2, 3, 5, 7, 14, 19, 33])
SIZES = st.sampled_from([1, 2, 5, 13, 31, 32, 33, 64, 97])
SCALES = st.sampled_from([1e-30, 1e-7, 1.0, 1e30])
THRESHOLDS = st.one_of(st.sampled_from([0, 0.25, 0.5, 0.75, 1, 1e-45, 1e-7, 1 - 2**-24]), st.floats(0, 1))


@given(st.data(), class_maps(st.integers(1, 3), SIDES, SIDES, SCALES), THRESHOLDS, st.sampled_from(sorted(RECIPES)))
@settings(deadline=None, max_examples=400)
def test_counts_of_a_class_map_equal_the_reference(data, class_map, threshold, convention):
    roi = pack_roi(data.draw(masks(len(class_map), SIZES, SIZES)))
    arguments = {
        "features": class_map[:, None],  # one channel of weight 1: the class map is exact
        "weight": None,
        "bias": None,
        "roi": roi,
        "alpha": torch.ones(len(class_map), 1),
        "logits": torch.zeros(len(class_map), 2),
        "threshold": threshold,
        "convention": convention,
    }
    ours, reference = acquire(**arguments, backend="cpu"), acquire(**arguments, backend="reference")
    for name in (*COUNTS, "predicted", "logits"):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name
    cam = RECIPES[convention](class_map, roi.shape[1:]).double()
    mask = roi.unpack()
    for name, expected in (("soft_intersection", cam * mask), ("soft_area", cam + mask)):
        size = cam.abs().amax((1, 2)) * cam[0].numel()
        error = (getattr(ours, name) - expected.sum((1, 2))).abs()
        assert (error <= 2e-6 * size + 1e-7 * expected.sum((1, 2)).abs()).all(), name


@st.composite
def problems(draw):
    """Features, a linear head, the classes to explain or None, and an ROI."""
    rng = np.random.default_rng(draw(seeds))
    b, c, k = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 4, 17, 64])), draw(st.sampled_from([1, 2, 3, 30]))
    h, w = draw(st.sampled_from([1, 2, 3, 7, 8])), draw(st.sampled_from([1, 2, 3, 7, 8]))
    features = torch.from_numpy(rng.normal(size=(b, c, h, w)) * draw(st.sampled_from([1e-6, 1.0, 50.0])))
    features = laid_out(features.to(draw(st.sampled_from(HALVES_AND_SINGLES))), draw(st.sampled_from(LAYOUTS)))
    weight, bias = torch.from_numpy(rng.normal(size=(k, c))).float(), torch.from_numpy(rng.normal(size=k)).float()
    classes = torch.from_numpy(rng.integers(k, size=b)) if draw(st.booleans()) else None
    return features, weight, bias if draw(st.booleans()) else None, classes, draw(masks(b, SIZES, SIZES))


@given(problems(), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans())
@settings(deadline=None, max_examples=200)
def test_it_equals_loops_over_pixels_up_to_rounding(problem, threshold, cached):
    features, weight, bias, classes, roi = problem
    limit, cpu.CACHED_WEIGHTS = cpu.CACHED_WEIGHTS, cpu.CACHED_WEIGHTS if cached else 0  # in the kernel, or by GEMM
    try:
        out = acquire(features, weight, bias, pack_roi(roi), classes=classes, threshold=threshold, backend="cpu")
    finally:
        cpu.CACHED_WEIGHTS = limit
    u, (_, channels, h, w) = 2.0**-24, features.shape
    wide = torch.zeros(len(weight)) if bias is None else bias
    for i in range(min(len(features), 2)):
        a = features[i].double()
        logits = linear_head(a.tolist(), weight.double().tolist(), wide.double().tolist())
        size = (weight.double().abs() @ a.abs().mean((1, 2)) + wide.abs()).max().item()
        slack = 2 * (channels + h * w + 2) * u * size
        np.testing.assert_allclose(out.logits[i].double(), logits, rtol=0, atol=slack)
        assert logits[int(out.predicted[i])] >= max(logits) - 2 * slack
        explained = out.predicted[i] if classes is None else classes[i]
        alpha = (weight[explained].double() / (h * w)).tolist()
        true = truth(a.tolist(), alpha, logits, roi[i].tolist(), threshold)
        assert out.entropy[i].item() == pytest.approx(true.entropy, rel=0, abs=4 * slack + 16 * u)
        margin = true.cam_error(channels, u)
        flips = true.near(threshold, margin)
        assert out.roi_area[i] == true.roi_area
        assert abs(out.cam_area[i] - true.cam_area) <= flips
        assert abs(out.intersection[i] - true.intersection) <= flips
        soft = roi[i].numel() * (min(margin, 1) + 16 * u)
        assert out.soft_intersection[i].item() == pytest.approx(true.soft_intersection, rel=0, abs=soft)
        assert out.soft_area[i].item() == pytest.approx(true.soft_area, rel=u, abs=soft)


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("classes", "side", "size"), [(3, 7, 224), (9, 7, 61), (4, 14, 224), (5, 9, 100)])
def test_counts_differ_only_by_pixels_within_4_ulp_of_the_threshold(dtype, layout, classes, side, size):
    """The last bit of a class map may differ, which moves only these pixels; the test bounds their number too."""
    features, weight, bias, roi, _ = scene(16, 700, classes, side, size, positive=True)
    features = features.to(dtype).contiguous(memory_format=layout)
    for threshold in (0.3, 0.5, 0.7):
        ours, reference = (acquire(features, weight, bias, roi, threshold=threshold, backend=name)
                           for name in ("cpu", "reference"))  # fmt: skip
        assert torch.equal(ours.predicted, reference.predicted)
        torch.testing.assert_close(ours.logits, reference.logits, rtol=2**-22, atol=1e-7)
        torch.testing.assert_close(ours.entropy, reference.entropy, rtol=2**-20, atol=1e-7)
        alpha = weight[reference.predicted].double() / side**2
        cam = RECIPES["grad-cam"](torch.einsum("bc,bchw->bhw", alpha, features.double()).float(), (size, size))
        ulp = np.spacing(np.float32(threshold))
        near = ((cam - threshold).abs() <= 4 * ulp).sum((1, 2))
        assert near.sum() <= 1e-6 * cam.numel() + 4
        for name in ("intersection", "cam_area"):
            assert ((getattr(ours, name) - getattr(reference, name)).abs() <= near).all(), name
        assert torch.equal(ours.roi_area, reference.roi_area)
        for name in SOFT:
            torch.testing.assert_close(getattr(ours, name), getattr(reference, name), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", HALVES_AND_SINGLES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_non_finite_samples_are_marked_as_by_the_reference(value, dtype, channels_last, cached, monkeypatch):
    monkeypatch.setattr(cpu, "CACHED_WEIGHTS", 1 << 16 if cached else 0)
    features, weight, bias, roi, _ = scene(6, 8, 3, 5, 40)
    weight[:, 5] = 0
    features[1, 2, 3, 3] = features[4, 5, 0, 0] = value  # in a channel that counts, and in a silent one
    features = features.to(dtype).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    ours = acquire(features, weight, bias, roi, backend="cpu")
    reference = acquire(features, weight, bias, roi, backend="reference")
    assert ours.predicted.tolist() == reference.predicted.tolist()
    assert (ours.predicted == -1).tolist() == [i in (1, 4) for i in range(6)]
    for name in COUNTS:
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name
    for name in ("entropy", *SOFT):
        torch.testing.assert_close(getattr(ours, name), getattr(reference, name), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_every_half_precision_value_is_read_exactly():
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        every = every[every.isfinite()]
        out = acquire(every.view(-1, 1, 1, 1), torch.ones(1, 1), None, pack_roi(torch.ones(len(every), 1, 1) > 0))
        assert torch.equal(out.logits[:, 0], every.float())


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    channels=st.sampled_from([1, 3, 4, 63, 64, 130]),
    classes=st.sampled_from([2, 3, cpu_head.MAPPED, cpu_head.MAPPED + 1, 9, 1000]),
    side=st.sampled_from([(1, 1), (2, 2), (4, 4), (4, 8), (16, 2), (16, 16)]),
    size=st.sampled_from([(31, 33), (64, 40), (7, 97)]),
    dtype=st.sampled_from(HALVES_AND_SINGLES),
    channels_last=st.booleans(),
)
def test_heads_with_exact_sums_have_the_reference_counts(seed, channels, classes, side, size, dtype, channels_last):
    """With small integers and 2ⁿ positions no sum is rounded, so no pixel may differ."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.integers(-8, 9, (3, channels, *side))).to(dtype)
    weight = torch.from_numpy(rng.integers(-8, 9, (classes, channels)) / 8).float()
    roi = pack_roi(torch.from_numpy(rng.random((3, *size)) < 0.3))
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    ours, reference = (acquire(features, weight, None, roi, backend=name) for name in ("cpu", "reference"))
    for name in ("logits", "predicted", *COUNTS):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name


def test_every_element_of_the_output_is_written(monkeypatch):
    features, weight, bias, roi, _ = scene(6, 8, 3, 5, 40)
    features[2] = math.nan
    clean = acquire(features, weight, bias, roi, backend="cpu")
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full_like(empty(shape, dtype), -77))
    poisoned = acquire(features, weight, bias, roi, backend="cpu")
    for name in vars(clean):
        torch.testing.assert_close(getattr(poisoned, name), getattr(clean, name), rtol=0, atol=0, equal_nan=True)


def test_a_thread_needs_at_most_64_kib_of_scratch():
    """For 7×7→224², 2048 channels and 10 classes: nothing grows with B·H·W or with H·W."""
    h, w, height, width, channels, classes = 7, 7, 224, 224, 2048, 10
    space = cpu_overlap.scratch(h, w, width, -(-height // 32))  # the arrays that the kernel itself allocates
    head = 4 * (cpu_head.MAPPED * h * w + h * w + 2 * channels + classes)  # maps, the map, means, products with weights
    assert sum(array.nbytes for array in space) + head <= 64 * 1024


def test_peak_memory_does_not_grow_with_the_batch(run_script):
    """Linux reports a few pages beyond the result of a batch of 256, whose maps at full resolution would be 51 MB."""
    script = """
import torch
from egal_kernels import PackedRoi, acquire
torch.set_num_threads(2)
batch = 256
arguments = torch.rand(batch, 64, 7, 7), torch.rand(10, 64), None
roi = PackedRoi(torch.randint(0, 2**31, (batch, 224, 7), dtype=torch.int32), 224)
def resident(field):
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(field)))
acquire(arguments[0][:8], *arguments[1:], roi[:8], backend="cpu")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident("VmRSS")
out = acquire(*arguments, roi, backend="cpu")
print(resident("VmHWM") - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    result = 256 * 4 * (10 + 8)
    assert int(run_script(script)[0]) <= result + 2 * 64 * 1024 + 256 * 1024  # 256: Python's own objects, in pages


def test_an_empty_batch_gives_empty_fields():
    out = acquire(torch.zeros(0, 2, 3, 3), torch.zeros(4, 2), None, pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool)))
    assert out.logits.shape == (0, 4)
    assert out.soft_dice().shape == (0,)


@pytest.mark.parametrize("cached", [False, True])
def test_channel_weights_include_the_factor_1_over_hw(cached, monkeypatch):
    monkeypatch.setattr(cpu, "CACHED_WEIGHTS", 1 << 16 if cached else 0)
    features = torch.tensor([[[[0.0, 0.0], [0.0, 4e-14]]]])  # so faint that the ε of min-max shows the scale
    roi = pack_roi(torch.ones(1, 2, 2, dtype=torch.bool))
    out = acquire(features, torch.ones(1, 1), None, roi, backend="cpu")
    assert float(out.soft_intersection) == pytest.approx(0.5, abs=1e-6)  # 1e-14/1e-7 = 1e-7, then 1e-7/(1e-7 + 1e-7)


@pytest.mark.parametrize("cached", [False, True])
def test_class_maps_equal_the_reference_to_the_last_bit(cached, monkeypatch):
    """Each threshold is the value of one pixel, so α = W/(h·w) must not be rounded to float32 on the way."""
    monkeypatch.setattr(cpu, "CACHED_WEIGHTS", 1 << 16 if cached else 0)
    features = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    arguments = features, torch.ones(1, 1), None, pack_roi(torch.ones(1, 7, 7, dtype=torch.bool))
    cam = RECIPES["torchcam"]((features[:, 0].double() / 49).float(), (7, 7))
    for threshold in cam.flatten().tolist():
        counts = [int(acquire(*arguments, threshold=threshold, convention="torchcam", backend=name).cam_area)
                  for name in ("cpu", "reference")]  # fmt: skip
        assert counts[0] == counts[1] == (cam >= threshold).sum()

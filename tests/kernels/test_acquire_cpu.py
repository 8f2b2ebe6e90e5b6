"""The CPU backend against the reference and against per-pixel loops in binary64; its threads and its output buffers."""

import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from egal_kernels import acquire, pack_roi, threads
from egal_kernels.acquisition import cpu, cpu_head, cpu_overlap
from egal_kernels.acquisition.conventions import RECIPES
from egal_kernels.threads import each_thread, take, team
from kernels.kernel_oracle import linear_head, truth

COUNTS = ("intersection", "cam_area", "roi_area")
SOFT = ("soft_intersection", "soft_area")
SIDES = st.sampled_from([1, 2, 3, 5, 7, 14, 19, 33])
SIZES = st.sampled_from([1, 2, 5, 13, 31, 32, 33, 64, 97])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@st.composite
def maps(draw):
    """Class maps [B, h, w]: noise, ramps, plateaus, constants, nowhere positive, huge and tiny ranges on an offset."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 3)), draw(SIDES), draw(SIDES)
    kind = draw(st.sampled_from(["noise", "ramp", "plateaus", "constant", "negative", "one cell"]))
    m = {
        "noise": lambda: rng.normal(size=shape),
        "ramp": lambda: np.add.outer(rng.normal(size=(*shape[:1], 1)) * np.arange(shape[1]), np.arange(shape[2])),
        "plateaus": lambda: rng.integers(0, 3, size=shape).astype(float),
        "constant": lambda: np.full(shape, rng.normal()),
        "negative": lambda: -rng.random(shape),
        "one cell": lambda: np.arange(np.prod(shape)).reshape(shape) == rng.integers(np.prod(shape)),
    }[kind]()  # fmt: skip
    m = m * draw(st.sampled_from([1e-30, 1e-7, 1.0, 1e30])) + draw(st.sampled_from([0.0, 0.0, 1.0, -1.0]))
    return torch.from_numpy(m.astype(np.float32))


@st.composite
def rois(draw, batch):
    """[B, H, W] bool: empty, full, noise, or a rectangle."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(SIZES), draw(SIZES)
    roi = rng.random((batch, height, width)) < draw(st.sampled_from([0.0, 0.3, 1.0, 2.0]))
    if draw(st.booleans()):
        y, x = rng.integers(height), rng.integers(width)
        roi[:, :y] = False
        roi[:, :, :x] = False
    return torch.from_numpy(roi)


THRESHOLDS = st.one_of(st.sampled_from([0, 0.25, 0.5, 0.75, 1, 1e-45, 1e-7, 1 - 2**-24]), st.floats(0, 1))


@given(st.data(), maps(), THRESHOLDS, st.sampled_from(sorted(RECIPES)))
@settings(deadline=None, max_examples=400)
def test_of_a_given_class_map_every_count_equals_the_references(data, class_map, threshold, convention):
    roi = pack_roi(data.draw(rois(len(class_map))))
    given = {
        "features": class_map[:, None],  # one channel of weight 1: the class map is exact
        "weight": None,
        "bias": None,
        "roi": roi,
        "alpha": torch.ones(len(class_map), 1),
        "logits": torch.zeros(len(class_map), 2),
        "threshold": threshold,
        "convention": convention,
    }
    ours, reference = acquire(**given, backend="cpu"), acquire(**given, backend="reference")
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
    """Features, a linear head, an ROI and an option to explain given classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    b, c, k = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 4, 17, 64])), draw(st.sampled_from([1, 2, 3, 30]))
    h, w = draw(st.sampled_from([1, 2, 3, 7, 8])), draw(st.sampled_from([1, 2, 3, 7, 8]))
    features = torch.from_numpy(rng.normal(size=(b, c, h, w)) * draw(st.sampled_from([1e-6, 1.0, 50.0])))
    features = features.to(draw(DTYPES))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "strided"]))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        features = features.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    weight, bias = torch.from_numpy(rng.normal(size=(k, c))).float(), torch.from_numpy(rng.normal(size=k)).float()
    classes = torch.from_numpy(rng.integers(k, size=b)) if draw(st.booleans()) else None
    return features, weight, bias if draw(st.booleans()) else None, classes, draw(rois(b))


@given(problems(), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans())
@settings(deadline=None, max_examples=200)
def test_equals_the_per_pixel_loops_up_to_rounding(problem, threshold, cached):
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


def scenes(b=64, c=256, k=5, side=7, size=224):
    """Smooth feature maps as a network gives them, a linear head, and discs for ROIs."""
    g = torch.Generator().manual_seed(0)
    features = torch.nn.functional.interpolate(torch.rand(b, c, 4, 4, generator=g), (side, side), mode="bicubic")
    weight, bias = torch.randn(k, c, generator=g), torch.randn(k, generator=g)
    y = torch.arange(size)
    centre = torch.randint(size, (b, 2), generator=g)
    far = (y[:, None] - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2
    return features, weight, bias, pack_roi(far < (size // 6) ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("classes", "side", "size"), [(3, 7, 224), (9, 7, 61), (4, 14, 224), (5, 9, 100)])
def test_on_whole_heads_only_pixels_within_4_ulp_of_the_threshold_differ_from_the_reference(
    dtype, layout, classes, side, size
):
    """Their class maps may differ in the last bit of what was rounded, so these are counted, and are hardly any."""
    features, weight, bias, roi = scenes(16, 700, classes, side, size)
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_sample_that_is_not_finite_is_marked_as_the_reference_marks_it(
    value, dtype, channels_last, cached, monkeypatch
):
    monkeypatch.setattr(cpu, "CACHED_WEIGHTS", 1 << 16 if cached else 0)
    features, weight, bias, roi = scenes(6, 8, 3, 5, 40)
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
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from([1, 3, 4, 63, 64, 130]),
    classes=st.sampled_from([2, 3, cpu_head.MAPPED, cpu_head.MAPPED + 1, 9, 1000]),
    side=st.sampled_from([(1, 1), (2, 2), (4, 4), (4, 8), (16, 2), (16, 16)]),
    size=st.sampled_from([(31, 33), (64, 40), (7, 97)]),
    dtype=DTYPES,
    channels_last=st.booleans(),
)
def test_a_head_whose_sums_are_exact_gives_the_reference_s_counts(
    seed, channels, classes, side, size, dtype, channels_last
):
    """Small integers, and 2ⁿ positions: no sum is rounded, so its order cannot excuse a single pixel."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.integers(-8, 9, (3, channels, *side))).to(dtype)
    weight = torch.from_numpy(rng.integers(-8, 9, (classes, channels)) / 8).float()
    roi = pack_roi(torch.from_numpy(rng.random((3, *size)) < 0.3))
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    ours, reference = (acquire(features, weight, None, roi, backend=name) for name in ("cpu", "reference"))
    for name in ("logits", "predicted", *COUNTS):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name


@pytest.mark.parametrize("cached", [False, True])
def test_channel_weights_carry_the_one_over_hw_of_average_pooling(cached, monkeypatch):
    monkeypatch.setattr(cpu, "CACHED_WEIGHTS", 1 << 16 if cached else 0)
    features = torch.tensor([[[[0.0, 0.0], [0.0, 4e-14]]]])  # so faint that the ε of min-max shows the scale
    roi = pack_roi(torch.ones(1, 2, 2, dtype=torch.bool))
    out = acquire(features, torch.ones(1, 1), None, roi, backend="cpu")
    assert float(out.soft_intersection) == pytest.approx(0.5, abs=1e-6)  # 1e-14/1e-7 = 1e-7, then 1e-7/(1e-7 + 1e-7)


def test_the_number_of_threads_changes_nothing_and_is_left_as_it_was():
    features, weight, bias, roi = scenes(13)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            outs.append(acquire(features, weight, bias, roi, backend="cpu"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for out in outs[1:]:
        for name in vars(out):
            assert torch.equal(getattr(out, name), getattr(outs[0], name)), name


@njit(error_model="numpy")
def meet(arrived, looks, met, expected):
    """Counts itself in and waits for the others, but not for ever."""
    take(arrived)
    while take(looks) < 1 << 28:
        if arrived[0] == expected:
            take(met)
            return


@njit(nogil=True)
def gather(team, expected):
    arrived, looks, met = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    each_thread(team, meet, (arrived, looks, met, np.int64(expected)))
    return met[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_threads_as_pytorch_has(count):
    """They meet, so they run at once; and no more come than there are samples."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        assert gather(team(100), count) == count
        assert gather(team(1), 1) == 1
    finally:
        torch.set_num_threads(before)


def test_without_openmp_the_caller_does_it_all(monkeypatch):
    expected = acquire(*scenes(9), backend="cpu")
    monkeypatch.setattr(threads, "_entry", lambda: 0)
    assert team(100) == (0, 1)
    out = acquire(*scenes(9), backend="cpu")
    assert all(torch.equal(getattr(out, name), getattr(expected, name)) for name in vars(out))


def test_calls_from_several_threads_do_not_mix():
    problems = [scenes(5, 64, 3, 7, 50 + i) for i in range(4)]
    expected = [acquire(*problem, backend="cpu") for problem in problems]
    wrong = []

    def work(i):
        for _ in range(10):
            out = acquire(*problems[i], backend="cpu")
            if not all(torch.equal(getattr(out, name), getattr(expected[i], name)) for name in vars(out)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_element_of_the_output_is_written(monkeypatch):
    features, weight, bias, roi = scenes(6, 8, 3, 5, 40)
    features[2] = math.nan
    clean = acquire(features, weight, bias, roi, backend="cpu")
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full_like(empty(shape, dtype), -77))
    poisoned = acquire(features, weight, bias, roi, backend="cpu")
    for name in vars(clean):
        torch.testing.assert_close(getattr(poisoned, name), getattr(clean, name), rtol=0, atol=0, equal_nan=True)


def test_a_thread_works_in_64_kib_beyond_the_features_and_the_result():
    """A 7×7 map of 2048 channels and 10 classes at 224²: nothing that grows with B·H·W, nor with H·W."""
    h, w, height, width, channels, classes = 7, 7, 224, 224, 2048, 10
    space = cpu_overlap.scratch(h, w, width, -(-height // 32))  # the arrays that the kernel itself allocates
    head = 4 * (cpu_head.MAPPED * h * w + h * w + 2 * channels + classes)  # maps, the map, means, products with weights
    assert sum(array.nbytes for array in space) + head <= 64 * 1024


def test_peak_memory_does_not_grow_with_the_batch():
    """Measured by the system: a batch of 256 needs a few pages more than its result, where one map is 51 MB."""
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
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    result = 256 * 4 * (10 + 8)
    assert int(run.stdout) <= result + 2 * 64 * 1024 + 256 * 1024  # 256: Python's own objects, in pages


def test_an_empty_batch_gives_empty_fields():
    out = acquire(torch.zeros(0, 2, 3, 3), torch.zeros(4, 2), None, pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool)))
    assert out.logits.shape == (0, 4)
    assert out.soft_dice().shape == (0,)


def test_without_numba_one_warning_says_what_is_lost():
    script = """
import sys, warnings, torch
sys.modules["numba"] = None
from egal_kernels import acquire, pack_roi
arguments = torch.ones(1, 1, 2, 2), torch.ones(2, 1), None, pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    acquire(*arguments)
    acquire(*arguments)
print(*(w.message for w in caught))
try:
    acquire(*arguments, backend="cpu")
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    warned, refused = run.stdout.splitlines()
    assert warned.count("Numba is not installed") == 1
    assert refused.startswith("backend: 'cpu' needs Numba")


def test_a_kernel_is_compiled_again_when_another_source_of_the_package_changes(tmp_path):
    package = shutil.copytree(Path(threads.__file__).parent, tmp_path / "egal_kernels",
                              ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    script = """
import torch
from egal_kernels import pack_roi, roi_cpu
pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
print(roi_cpu.__file__, len(roi_cpu.pack.stats.cache_misses))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        file, misses = done.stdout.split()
        assert Path(file).parent == package
        return int(misses)

    assert (run(), run()) == (1, 0)
    with (package / "acquisition" / "cpu_head.py").open("a") as source:
        source.write("# another\n")
    assert run() == 1


def test_no_instruction_beyond_those_of_the_family_is_needed(tmp_path):
    """Numba told to compile for any of its processors, without conversions of halves and with few registers."""
    script = """
import torch
from egal_kernels import acquire, pack_roi
features, roi = torch.arange(8.0).reshape(1, 2, 2, 2).half(), pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
print(acquire(features, torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None, roi, backend="cpu").logits.tolist())
wide = torch.arange(3 * 49.0).reshape(1, 3, 7, 7).half() % 11
weight, roi = torch.tensor([[1.0, -2, 1], [3, 1, -1], [-1, 1, 2]]), pack_roi(torch.ones(1, 61, 40, dtype=torch.bool))
print(*(int(acquire(wide, weight, None, roi, backend=name).cam_area) for name in ("cpu", "reference")))
"""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | plain, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    logits, areas = run.stdout.splitlines()
    assert logits == "[[1.5, 11.0]]"
    ours, reference = map(int, areas.split())
    assert ours == reference > 0


def test_a_forked_child_computes_too():
    script = """
import os, torch
from egal_kernels import acquire, pack_roi
roi = pack_roi(torch.ones(4, 4, 4, dtype=torch.bool))
torch.set_num_threads(2)
run = lambda: acquire(torch.ones(4, 1, 2, 2), torch.ones(2, 1), None, roi, backend="cpu").roi_area.tolist()
run()
child = os.fork()
if child == 0:
    os._exit(0 if run() == [16] * 4 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

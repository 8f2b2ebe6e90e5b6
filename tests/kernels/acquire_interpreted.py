"""The Triton backend in its interpreter against the reference; test_acquire_triton.py runs this in its own process.

Outputs and scratch start as NaN and 2³¹ − 1: PyTorch fills uninitialised memory so in its deterministic mode.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from egal_kernels import acquire, pack_roi
from egal_kernels.acquisition import reference as reference_backend
from egal_kernels.acquisition import triton as backend
from egal_kernels.acquisition.heads import ExplainedLogits, LinearHead
from egal_kernels.shared.recipes import RECIPES
from egal_kernels.shared.triton_launch import Tuning
from kernels.problems import COUNTS, SOFT, class_maps, masks, seeds

assert backend.INTERPRETED, "set TRITON_INTERPRET=1"
torch.use_deterministic_algorithms(True)

# the time of the interpreter grows with the source rows and the words of the ROI, not with the columns
HEIGHTS, WIDTHS = st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3, 7, 14, 19])
ROI_HEIGHTS, ROI_WIDTHS = st.sampled_from([1, 2, 13, 32, 33, 70]), st.sampled_from([1, 2, 31, 97, 224])
SCALES = st.sampled_from([1e-42, 1e-30, 1e-7, 1.0, 1e30])
THRESHOLDS = st.one_of(st.sampled_from([0, 0.25, 0.5, 0.75, 1, 1e-45, 1 - 2**-24]), st.floats(0, 1))


def settled(examples):
    return settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )


def choose_path(patch, path):
    """Make `acquire` take one of its paths for linear heads: "one pass", "pooled" or "gemm"."""
    patch.setattr(backend, "ONE_PASS_CLASSES", 8 if path == "one pass" else 0)
    patch.setattr(backend, "PROGRAM_WEIGHTS", 0 if path == "gemm" else 1 << 16)


TUNED = st.builds(
    Tuning,
    warps=st.just(4),
    channels=st.sampled_from([1, 16, 32]),
    positions=st.sampled_from([4, 64, 256]),
    columns=st.sampled_from([128, 256]),
    epilogue=st.sampled_from([0, 0, 1, 4]),
    samples=st.sampled_from([1, 1, 8]),
)


@given(st.data(), class_maps(st.just(1), HEIGHTS, WIDTHS, SCALES), THRESHOLDS, st.sampled_from(sorted(RECIPES)), TUNED)
@settled(30)
def test_counts_of_a_class_map_equal_the_reference(data, class_map, threshold, convention, tuned):
    roi = pack_roi(data.draw(masks(1, ROI_HEIGHTS, ROI_WIDTHS)))
    cam = RECIPES[convention](class_map, roi.shape[1:])
    if data.draw(st.booleans()):  # a pixel's own value: no rounding may differ
        threshold = float(cam.flatten()[data.draw(st.integers(0, cam.numel() - 1))].clamp(0, 1))
    features, head = class_map[:, None], ExplainedLogits(torch.ones(1, 1), torch.zeros(1, 2))  # the map is exact
    options = {"threshold": threshold, "convention": convention}
    ours = backend.acquire(features, head, roi, **options, tuned=tuned)
    reference = reference_backend.acquire(features, head, roi, **options)
    for name in (*COUNTS, "predicted", "logits"):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name
    cam, mask = cam.double(), roi.unpack()
    for name, expected in (("soft_intersection", cam * mask), ("soft_area", cam + mask)):
        error = (getattr(ours, name) - expected.sum((1, 2))).abs()
        tiny = 1e-36 * cam.numel()  # a subnormal's rounding over an ε of 1e-8
        assert error <= 2e-6 * cam.abs().amax() * cam.numel() + 1e-7 * expected.sum().abs() + tiny, name


@st.composite
def heads(draw):
    """Features of all dtypes and layouts, and a head of either form."""
    rng = np.random.default_rng(draw(seeds))
    b, c, k = 1, draw(st.sampled_from([1, 2, 5, 17, 33])), draw(st.sampled_from([1, 2, 3, 8, 9, 20]))
    features = torch.from_numpy(rng.normal(size=(b, c, draw(HEIGHTS), draw(WIDTHS)))).to(
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    )
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "strided"]))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":  # a batch stride of its own
        features = torch.cat([features, features + 1], 1)[:, :c]
    elif layout == "strided":
        features = features.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    random = lambda *shape: torch.from_numpy(rng.normal(size=shape)).to(dtype)  # noqa: E731
    if draw(st.booleans()):
        return features, ExplainedLogits(random(b, c), random(b, k))
    classes = torch.from_numpy(rng.integers(k, size=b)) if draw(st.booleans()) else None
    return features, LinearHead(random(k, c), random(k) if draw(st.booleans()) else None, classes)


@given(heads(), st.data(), st.sampled_from(sorted(RECIPES)), st.sampled_from(["one pass", "pooled", "gemm"]), TUNED)
@settled(20)
def test_counts_differ_only_by_pixels_near_the_threshold(problem, data, convention, path, tuned):
    (features, head), roi = problem, pack_roi(data.draw(masks(1, ROI_HEIGHTS, ROI_WIDTHS)))
    options = {"threshold": 0.5, "convention": convention}
    with pytest.MonkeyPatch.context() as patch:
        choose_path(patch, path)
        ours = backend.acquire(features, head, roi, **options, tuned=tuned)
    reference = reference_backend.acquire(features, head, roi, **options)
    torch.testing.assert_close(ours.logits, reference.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy, reference.entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.predicted, reference.predicted)
    _, height, width = roi.shape
    if isinstance(head, LinearHead):
        explained = reference.predicted if head.classes is None else head.classes
        alpha = head.weight[explained].float() / features[0, 0].numel()
    else:
        alpha = head.alpha.float()
    terms = alpha[:, :, None, None] * features.float()
    cam = RECIPES[convention](terms.sum(1), (height, width))
    range_of = lambda m: m.amax((1, 2)) - m.amin((1, 2))  # noqa: E731
    rectified = terms.sum(1).relu() if RECIPES[convention].relu else terms.sum(1)
    resized = range_of(RECIPES[convention](terms.sum(1), (height, width))) > 0
    margin = 256 * 2**-24 * terms.abs().sum(1).amax((1, 2)) / (range_of(rectified) + 1e-30)
    margin = torch.where(resized & (height >= features.shape[2]) & (width >= features.shape[3]), margin, torch.inf)
    near = ((cam - 0.5).abs() <= margin[:, None, None]).sum((1, 2))
    assert torch.equal(ours.roi_area, reference.roi_area)
    for name in ("intersection", "cam_area"):
        assert ((getattr(ours, name) - getattr(reference, name)).abs() <= near).all(), name
    for name in SOFT:
        error = (getattr(ours, name) - getattr(reference, name)).abs()
        assert (error <= height * width * (margin.clamp(max=1) + 1e-6)).all(), name


@pytest.mark.parametrize("path", ["one pass", "pooled", "gemm"])
def test_non_finite_samples_are_marked_as_by_the_reference(path, monkeypatch):
    choose_path(monkeypatch, path)
    g = torch.Generator().manual_seed(0)
    features, weight = torch.randn(5, 6, 2, 3, generator=g), torch.randn(2, 6, generator=g)
    weight[:, 5] = 0
    features[1, 2, 1, 2] = math.nan
    features[3, 3, 0, 1] = math.inf
    features[4, 5, 0, 0] = -math.inf  # in a channel without weight
    roi = pack_roi(torch.rand(5, 9, 9, generator=g) < 0.5)
    ours = acquire(features, weight, None, roi, backend="triton")
    reference = acquire(features, weight, None, roi, backend="reference")
    assert (ours.predicted == -1).tolist() == [False, True, False, True, True]
    for name in (*COUNTS, "predicted"):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name
    for name in ("entropy", *SOFT):
        torch.testing.assert_close(getattr(ours, name), getattr(reference, name), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_an_overflow_of_the_class_map_marks_the_sample():
    features = torch.full((1, 2, 2, 2), 3e38)
    logits, alpha, roi = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), pack_roi(torch.ones(1, 4, 4, dtype=torch.bool))
    out = acquire(features, None, None, roi, alpha=alpha, logits=logits, backend="triton")
    assert (int(out.predicted), int(out.roi_area), math.isnan(out.entropy)) == (-1, -1, True)


@pytest.mark.parametrize("one_pass", [8, 0])
def test_the_lowest_class_of_a_tie_is_predicted_and_explained(one_pass, monkeypatch):
    monkeypatch.setattr(backend, "ONE_PASS_CLASSES", one_pass)
    features = torch.tensor([[[[0.0, 0.0, 4.0]], [[4.0, 0.0, 0.0]]]])
    weight = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # classes 1 and 2 tie; their maps are mirror images
    roi = torch.zeros(1, 1, 6, dtype=torch.bool)
    roi[..., 4:] = True
    out = acquire(features, weight, None, pack_roi(roi), backend="triton")
    assert (int(out.predicted), int(out.intersection), int(out.cam_area)) == (1, 2, 2)


def test_more_classes_than_a_block_of_logits_are_accepted():
    logits = torch.arange(1100.0)[None] / 100
    logits[0, 3] = 11
    out = acquire(torch.ones(1, 1, 1, 1), None, None, pack_roi(torch.ones(1, 1, 1, dtype=torch.bool)),
                  alpha=torch.ones(1, 1), logits=logits, backend="triton")  # fmt: skip
    assert int(out.predicted) == 3
    assert torch.equal(out.logits, logits)
    torch.testing.assert_close(out.entropy, torch.distributions.Categorical(logits=logits).entropy())


@pytest.mark.parametrize("gap", [0.0, 1.0, 5.0, 10.0, 20.0, 80.0, 1e5, 3e38])
def test_entropy_of_a_confident_prediction_is_accurate(gap):
    logits = torch.tensor([[0.0, gap]])
    p = math.exp(-gap) if gap < 700 else 0.0
    truth = math.log1p(p) + (p * gap / (1 + p) if p else 0.0)
    out = acquire(torch.ones(1, 1, 1, 1), None, None, pack_roi(torch.ones(1, 1, 1, dtype=torch.bool)),
                  alpha=torch.ones(1, 1), logits=logits, backend="triton")  # fmt: skip
    assert float(out.entropy) == pytest.approx(truth, rel=1e-5, abs=1e-37)


@pytest.mark.parametrize(
    ("path", "variant"),
    [(path, {"epilogue": 1}) for path in ("one pass", "pooled", "gemm")]
    + [(path, {"samples": 2}) for path in ("one pass", "gemm")],
)
def test_every_variant_gives_the_bits_of_the_default(path, variant, monkeypatch):
    choose_path(monkeypatch, path)
    g = torch.Generator().manual_seed(0)
    features, head = torch.randn(3, 20, 3, 5, generator=g), LinearHead(torch.randn(4, 20, generator=g), None, None)
    features[1, 2, 1, 2] = math.nan
    roi = pack_roi(torch.rand(3, 33, 40, generator=g) < 0.5)
    tunings = Tuning(4, 16, 8, 128), Tuning(4, 16, 8, 128, **variant)  # several tiles along channels and positions
    default, other = (
        backend.acquire(features, head, roi, threshold=0.5, convention="grad-cam", tuned=tuned) for tuned in tunings
    )
    for name, expected in vars(default).items():
        torch.testing.assert_close(getattr(other, name), expected, rtol=0, atol=0, equal_nan=True, msg=name)


def test_an_empty_batch_gives_empty_fields():
    roi = pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool))
    out = acquire(torch.zeros(0, 2, 3, 3), torch.zeros(4, 2), None, roi, backend="triton")
    assert out.logits.shape == (0, 4)


def test_a_compiled_graph_gives_the_eager_result():
    features, weight = torch.randn(2, 3, 2, 2), torch.randn(2, 3)
    roi = pack_roi(torch.ones(2, 5, 5, dtype=torch.bool))
    eager = acquire(features, weight, None, roi, backend="triton")
    compiled = torch.compile(acquire, fullgraph=True, backend="aot_eager")
    out = compiled(features, weight, None, roi, backend="triton")
    for name in vars(eager):
        assert torch.equal(getattr(out, name), getattr(eager, name)), name

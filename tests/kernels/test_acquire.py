"""`acquire` against loops over pixels in binary64, and ties, constant maps, empty ROIs, non-finite samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_kernels import acquire, pack_roi
from kernels.oracle import linear_head, truth
from kernels.problems import COUNTS, seeds

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@st.composite
def problems(draw):
    """Arguments of `acquire` for a few images of odd sizes, with a linear or any other head."""
    rng = np.random.default_rng(draw(seeds))
    side, large = st.sampled_from([1, 2, 3, 5, 7]), st.sampled_from([1, 2, 5, 13, 31, 33])
    b, c, k = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8, 17])), draw(st.integers(1, 4))
    h, w, height, width = draw(side), draw(side), draw(large), draw(large)
    dtype = draw(st.sampled_from(DTYPES))
    features = rng.normal(size=(b, c, h, w)) * draw(st.sampled_from([1e-3, 1.0, 50.0]))
    features = torch.from_numpy(np.maximum(features, 0) if draw(st.booleans()) else features).to(dtype)
    if draw(st.booleans()):
        features = features.contiguous(memory_format=torch.channels_last)
    roi = rng.random((b, height, width)) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    head_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    head = {
        "weight": torch.from_numpy(rng.normal(size=(k, c))).to(head_dtype),
        "bias": torch.from_numpy(rng.normal(size=k)).to(head_dtype) if draw(st.booleans()) else None,
    }
    if draw(st.booleans()):
        head["classes"] = torch.from_numpy(rng.integers(k, size=b))
    if draw(st.booleans()):
        alpha, logits = rng.normal(size=(b, c)), 5 * rng.normal(size=(b, k))
        head = {
            "weight": None,
            "bias": None,
            "alpha": torch.from_numpy(alpha).to(head_dtype),
            "logits": torch.from_numpy(logits).to(head_dtype),
        }
    return features, head, torch.from_numpy(roi), draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))


@given(problems())
@settings(deadline=None, max_examples=150)
def test_it_equals_loops_over_pixels_up_to_rounding(problem):
    features, head, roi, threshold = problem
    linear = head["weight"] is not None
    out = acquire(features, roi=pack_roi(roi), threshold=threshold, backend="reference", **head)
    wide = features.dtype == torch.float64
    dtype, u = (torch.float64, 2.0**-53) if wide else (torch.float32, 2.0**-24)
    _, channels, h, w = features.shape
    for i in range(len(features)):
        a = features[i].double().tolist()
        if linear:
            weight = head["weight"].double()
            bias = torch.zeros(len(weight)) if head["bias"] is None else head["bias"].double()
            logits = linear_head(a, weight.tolist(), bias.tolist())
            size = (weight.abs() @ features[i].double().abs().mean((1, 2)) + bias.abs()).max().item()
            slack = 2 * (channels + h * w + 2) * u * size
            explained = head["classes"][i] if "classes" in head else out.predicted[i]
            alpha = (weight[explained] / (h * w)).tolist()
        else:
            alpha, logits, slack = head["alpha"][i].tolist(), head["logits"][i].tolist(), 0.0
        true = truth(a, alpha, logits, roi[i].tolist(), threshold)

        for name in ("logits", "entropy", "soft_intersection", "soft_area"):
            assert getattr(out, name).dtype == dtype, name
        np.testing.assert_allclose(out.logits[i].double(), logits, rtol=0, atol=slack)
        assert logits[int(out.predicted[i])] >= max(logits) - 2 * slack
        assert out.entropy[i].item() == pytest.approx(true.entropy, rel=0, abs=4 * slack + 16 * u)

        margin = true.cam_error(channels, u)
        flips = true.near(threshold, margin)
        assert out.roi_area[i] == true.roi_area
        assert abs(out.cam_area[i] - true.cam_area) <= flips
        assert abs(out.intersection[i] - true.intersection) <= flips
        soft = roi[i].numel() * (min(margin, 1) + 16 * u)
        assert out.soft_intersection[i].item() == pytest.approx(true.soft_intersection, rel=0, abs=soft)
        assert out.soft_area[i].item() == pytest.approx(true.soft_area, rel=u, abs=soft)
    for name in COUNTS:
        assert getattr(out, name).dtype == torch.int32, name
    assert out.predicted.dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES)
def test_well_conditioned_maps_have_the_exact_counts(dtype):
    rng = np.random.default_rng(3)
    features = torch.from_numpy(np.maximum(rng.normal(size=(4, 8, 7, 7)), 0)).to(dtype)
    weight = torch.from_numpy(rng.uniform(0.1, 1, size=(2, 8)))
    roi = torch.from_numpy(rng.random((4, 61, 47)) < 0.4)
    out = acquire(features, weight, None, pack_roi(roi), classes=torch.tensor([0, 1, 0, 1]), backend="reference")
    u = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    flips = pixels = 0
    for i in range(4):
        alpha = (weight.to(torch.float64 if dtype == torch.float64 else torch.float32)[i % 2].double() / 49).tolist()
        true = truth(features[i].double().tolist(), alpha, [0.0, 0.0], roi[i].tolist(), 0.5)
        assert true.near(0.5, true.cam_error(8, u)) <= 1
        flips += abs(int(out.cam_area[i]) - true.cam_area) + abs(int(out.intersection[i]) - true.intersection)
        pixels += true.cam_area
    assert flips == 0
    assert pixels > 1000


def acquire_map(cam, size, roi=None, threshold=0.5, dtype=torch.float32):
    """Return `acquire` of one image and one class, whose class map is the nested list `cam`; by default a full ROI."""
    features = torch.tensor(cam, dtype=dtype)[None, None]
    roi = torch.ones(1, *size, dtype=torch.bool) if roi is None else roi[None]
    return acquire(features, None, None, pack_roi(roi), threshold=threshold,
                   alpha=torch.ones(1, 1), logits=torch.zeros(1, 1))  # fmt: skip


@pytest.mark.parametrize("value", [-3.0, 0.0, 1e-30, 1.0, 3e38])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3)])
def test_a_constant_or_nowhere_positive_map_is_all_zeros(value, shape):
    out = acquire_map(np.full(shape, value).tolist(), (9, 11))
    assert (int(out.cam_area), int(out.intersection), int(out.roi_area)) == (0, 0, 99)
    assert float(out.soft_area) == 99
    assert float(out.soft_intersection) == 0
    assert float(out.soft_dice()) == 0
    assert int(acquire_map(np.full(shape, value).tolist(), (9, 11), threshold=0).cam_area) == 99  # 0 ≥ 0


def test_a_negative_map_with_one_positive_cell_is_that_cell():
    out = acquire_map([[-5.0, -5.0], [-5.0, 2.0]], (2, 2))
    assert (int(out.cam_area), int(out.intersection)) == (1, 1)
    assert float(out.soft_intersection) == pytest.approx(1, abs=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_0_counts_every_pixel_and_1_none(dtype):
    cam = [[0.0, 1.0], [2.0, 3.0]]
    assert int(acquire_map(cam, (8, 8), threshold=0, dtype=dtype).cam_area) == 64
    assert int(acquire_map(cam, (8, 8), threshold=1, dtype=dtype).cam_area) == 0  # 1e-7 keeps the peak below 1


def test_the_reference_includes_the_factor_1_over_hw():
    features = torch.tensor([[[[0.0, 0.0], [0.0, 4e-14]]]])  # so faint that the 1e-7 of min-max shows the scale
    out = acquire(features, torch.ones(1, 1), None, pack_roi(torch.ones(1, 2, 2, dtype=torch.bool)))
    # 4e-14/4 → 1e-14/(1e-7 + 1e-14) = 1e-7 → 1e-7/(1e-7 + 1e-7)
    assert float(out.soft_intersection) == pytest.approx(0.5, abs=1e-6)


def test_down_sampling_does_not_antialias():
    cam = torch.arange(16.0).reshape(4, 4).tolist()
    # sources 0.5 and 2.5: means of 2×2 cells, 2.5, 4.5, 10.5, 12.5 → 0, .2, .8, 1
    out = acquire_map(cam, (2, 2), threshold=0.7)
    assert int(out.cam_area) == 2
    assert float(out.soft_intersection) == pytest.approx(2.0, abs=1e-6)


def test_ties_predict_and_explain_the_lowest_class():
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # channels peak left, right
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    roi = torch.tensor([[[True, False]]])
    out = acquire(features, weight, torch.zeros(3), pack_roi(roi))
    assert out.logits.tolist() == [[0, 0.5, 0.5]]
    assert int(out.predicted) == 1
    assert int(out.intersection) == 1  # class 1 peaks left, inside the ROI
    assert int(acquire(features, weight, None, pack_roi(roi), classes=torch.tensor([2])).intersection) == 0


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, 0.0, 0.0], math.log(3)),
        ([1e30, 0.0, -1e30], 0.0),
        ([3e38, -3e38, 3e38], math.log(2)),
        ([-80.0, -80.0, -1e4], math.log(2)),
        ([7.0], 0.0),
    ],
)
def test_entropy_is_stable_for_huge_logits(logits, expected):
    out = acquire(torch.ones(1, 1, 1, 1), None, None, pack_roi(torch.ones(1, 2, 2, dtype=torch.bool)),
                  alpha=torch.ones(1, 1), logits=torch.tensor([logits]))  # fmt: skip
    assert float(out.entropy) == pytest.approx(expected, abs=1e-6)
    assert math.copysign(1, float(out.entropy)) == 1  # no −0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["features", "silent channel", "logits", "alpha"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_non_finite_sample_is_marked_and_spoils_no_other(value, dtype, where, backend):
    rng = np.random.default_rng(4)
    features = torch.from_numpy(rng.normal(size=(3, 5, 3, 3))).to(dtype)
    weight = torch.from_numpy(rng.normal(size=(2, 5)))
    weight[:, 4] = 0
    alpha, logits = torch.from_numpy(rng.normal(size=(3, 5))), torch.from_numpy(rng.normal(size=(3, 2)))
    roi = pack_roi(torch.from_numpy(rng.random((3, 10, 10)) < 0.5))

    def run():
        if where in ("logits", "alpha"):
            return acquire(features, None, None, roi, alpha=alpha, logits=logits, backend=backend)
        return acquire(features, weight, None, roi, backend=backend)

    clean = run()
    place = {"features": features[1, 2, 1], "silent channel": features[1, 4, 1], "logits": logits[1], "alpha": alpha[1]}
    place[where][0] = value
    out = run()
    assert [int(getattr(out, name)[1]) for name in (*COUNTS, "predicted")] == [-1] * 4
    for name in ("entropy", "soft_intersection", "soft_area"):
        assert math.isnan(getattr(out, name)[1]), name
    for empty in ("nan", "zero", "one"):
        assert math.isnan(out.dice(empty)[1])
        assert math.isnan(out.soft_dice(empty)[1])
    for name in vars(out):
        assert torch.equal(getattr(out, name)[[0, 2]], getattr(clean, name)[[0, 2]]), name


def test_a_batch_over_many_chunks_equals_its_samples_one_by_one(monkeypatch):
    from egal_kernels.acquisition import reference

    rng = np.random.default_rng(5)
    features = torch.from_numpy(rng.normal(size=(7, 4, 3, 2)))
    weight, bias = torch.from_numpy(rng.normal(size=(3, 4))), torch.from_numpy(rng.normal(size=3))
    mask = torch.from_numpy(rng.random((7, 12, 9)) < 0.5)
    classes = torch.from_numpy(rng.integers(3, size=7))
    monkeypatch.setitem(reference.CHUNK_PIXELS, "cpu", 2 * 12 * 9)  # chunks of 2, 2, 2 and 1
    batch = acquire(features, weight, bias, pack_roi(mask), classes=classes)
    for i in range(7):
        j = slice(i, i + 1)
        single = acquire(features[j], weight, bias, pack_roi(mask[j]), classes=classes[j])
        for name in vars(batch):
            torch.testing.assert_close(getattr(batch, name)[j], getattr(single, name), rtol=1e-12, atol=1e-12)


def test_an_empty_batch_gives_empty_fields():
    out = acquire(torch.zeros(0, 2, 3, 3), torch.zeros(4, 2), None, pack_roi(torch.zeros(0, 5, 5, dtype=torch.bool)))
    assert out.logits.shape == (0, 4)
    assert out.dice().shape == (0,)


def test_inputs_are_unchanged_and_results_need_no_gradient():
    features = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = features.detach().clone()
    out = acquire(features, torch.ones(2, 3), None, pack_roi(torch.ones(2, 4, 4, dtype=torch.bool)))
    assert torch.equal(features, before)
    assert not any(value.requires_grad for value in vars(out).values())

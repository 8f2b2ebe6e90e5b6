"""The contract of each op: what test_op_contract.py needs to test it. A new op adds its entry to CONTRACTS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from egal_kernels import acquire, cam_loss, pack_roi
from egal_kernels.conventions import CONVENTIONS
from kernels.oracle import linear_head, truth
from kernels.problems import (
    COUNTS,
    HALVES_AND_SINGLES,
    LAYOUTS,
    SOFT,
    assert_gradients,
    extremes_are_unique,
    gradients,
    laid_out,
    masks,
    scene,
    seeds,
    whole_number_losses,
)  # fmt: skip

Problem = dict[str, Any]  # the arguments of the op


@dataclass(frozen=True)
class Contract:
    """What the contract tests need to know about an op."""

    exact: st.SearchStrategy[Problem]
    """Problems in f32, bf16 and f16 whose sums are not rounded, so that backends must agree."""

    smooth: st.SearchStrategy[Problem]
    """Problems in f64, to be compared with an oracle."""

    run: Callable[..., dict[str, Tensor]]
    """Run a problem on a backend, if `compiled` through torch.compile; return its results, gradients included."""

    assert_equal: Callable[[Problem, dict[str, Tensor], str], None]
    """Assert that the results of a problem on a backend are those of the reference."""

    assert_true: Callable[[Problem, dict[str, Tensor]], None]
    """Assert that the results of a smooth problem are those of the definitions, written again as plain loops."""

    launch: Callable[[Any], dict[str, Any]]
    """Return the arguments with which the kernel of the passed Triton module is launched for a realistic shape."""


def as_graph(op):
    """Return the op as one graph of torch.compile, which fails if the graph breaks."""
    return torch.compile(op, fullgraph=True, backend="aot_eager")


# --- acquisition


@st.composite
def acquisitions(draw, whole):
    """Arguments of `acquire`, for either form of head; in whole numbers, or in f64."""
    rng = np.random.default_rng(draw(seeds))
    number = (lambda limit, *shape: rng.integers(-limit, limit + 1, shape)) if whole else (
        lambda limit, *shape: rng.normal(size=shape))  # fmt: skip
    sides, sizes = st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 13, 31, 33])
    b, c, k = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 17])), draw(st.sampled_from([1, 3, 9]))
    h, w = draw(sides), draw(sides)
    dtype = draw(st.sampled_from(HALVES_AND_SINGLES)) if whole else torch.float64
    values = number(8, b, c, h, w)
    if whole:  # so are the means, which some paths multiply by the weights
        values[..., 0, 0] -= values.sum((2, 3)) % (h * w)
    features = laid_out(torch.from_numpy(values).to(dtype), draw(st.sampled_from(LAYOUTS)))
    head = {"weight": None, "bias": None}
    if draw(st.booleans()):  # a weight is a multiple of h·w, so that α is a whole number too
        head |= {"weight": torch.from_numpy(number(4, k, c) * h * w)}
        head |= {"bias": torch.from_numpy(number(9, k)) if draw(st.booleans()) else None}
        head |= {"classes": torch.from_numpy(rng.integers(k, size=b))} if draw(st.booleans()) else {}
    else:
        head |= {"alpha": torch.from_numpy(number(4, b, c)), "logits": torch.from_numpy(number(9, b, k))}
    wide = torch.float32 if whole else torch.float64
    head = {name: x.to(wide) if name != "classes" and x is not None else x for name, x in head.items()}
    return {
        "features": features,
        **head,
        "roi": pack_roi(draw(masks(b, sizes, sizes))),
        "threshold": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "convention": draw(st.sampled_from(sorted(CONVENTIONS))) if whole else "grad-cam",
    }


def run_acquisition(problem, backend, compiled=False):
    return vars((as_graph(acquire) if compiled else acquire)(**problem, backend=backend))


def assert_equal_acquisition(problem, results, backend):
    expected = run_acquisition(problem, "reference")
    assert results.keys() == expected.keys()
    for name in ("logits", "predicted", *COUNTS):
        assert torch.equal(results[name], expected[name]), name
    torch.testing.assert_close(results["entropy"], expected["entropy"], rtol=1e-5, atol=1e-6)
    for name in SOFT:
        size = problem["roi"].shape[1] * problem["roi"].shape[2]
        torch.testing.assert_close(results[name], expected[name], rtol=2e-6, atol=2e-6 * size, msg=name)


def assert_true_acquisition(problem, results):
    features, roi = problem["features"], problem["roi"].unpack()
    for i, a in enumerate(features.tolist()):
        if problem["weight"] is None:
            alpha, logits = problem["alpha"][i].tolist(), problem["logits"][i].tolist()
        else:
            weight, bias = problem["weight"], problem["bias"]
            logits = linear_head(a, weight.tolist(), [0.0] * len(weight) if bias is None else bias.tolist())
            explained = problem["classes"][i] if "classes" in problem else int(np.argmax(logits))
            alpha = (weight[explained] / features[0, 0].numel()).tolist()
        expected = truth(a, alpha, logits, roi[i].tolist(), problem["threshold"])
        flips = expected.near(problem["threshold"], 1e-9)  # rounding may move these pixels across the threshold
        np.testing.assert_allclose(results["logits"][i], logits, rtol=1e-12, atol=1e-12)
        assert int(results["predicted"][i]) == int(np.argmax(logits))
        np.testing.assert_allclose(results["entropy"][i], expected.entropy, rtol=1e-9, atol=1e-12)
        assert results["roi_area"][i] == expected.roi_area
        assert abs(results["cam_area"][i] - expected.cam_area) <= flips
        assert abs(results["intersection"][i] - expected.intersection) <= flips
        for name in SOFT:
            np.testing.assert_allclose(results[name][i], getattr(expected, name), rtol=1e-9, atol=1e-6)


def launch_acquisition(module):
    from egal_kernels.acquisition.heads import LinearHead

    features, weight, bias, roi, _ = scene(1, 512, 3, 14, 224)
    _, tensors, (launch,) = module.prepared(features, LinearHead(weight, bias, None), roi, 0.5, "grad-cam")
    return launch.arguments(1, tensors)


# --- loss


@st.composite
def losses(draw, whole):
    """Arguments of `cam_loss` and the gradient of its result; in whole numbers, or in f64."""
    sides, sizes = st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 13, 31, 33])
    largest = {torch.float32: 250, torch.bfloat16: 250, torch.float16: 250}
    values = draw(whole_number_losses(st.integers(1, 2), st.sampled_from([1, 3, 17]), st.integers(1, 3), sides, sizes,
                                      largest))  # fmt: skip
    problem = dict(zip(("features", "weight", "roi", "classes", "grad"), values, strict=True))
    if not whole:
        rng = np.random.default_rng(draw(seeds))
        problem |= {name: torch.from_numpy(rng.normal(size=problem[name].shape)) for name in ("features", "weight")}
    problem["convention"] = draw(st.sampled_from(sorted(CONVENTIONS))) if whole else "grad-cam"
    assume(extremes_are_unique(*(problem[name] for name in ("features", "weight", "roi", "classes", "convention"))))
    return problem


def run_loss(problem, backend, compiled=False):
    op = as_graph(cam_loss) if compiled else cam_loss
    return dict(zip(("loss", "features", "weight"), gradients(**problem, backend=backend, op=op), strict=True))


def assert_equal_loss(problem, results, backend):
    # Triton's interpreter truncates a float32 to bfloat16, while devices and the CPU backend round it
    bfloat16 = 2**-7 if backend == "triton" else 2**-8
    rounding = {torch.float32: 2e-6, torch.bfloat16: bfloat16, torch.float16: 2**-10}[problem["features"].dtype]
    values = tuple(problem[name] for name in ("features", "weight", "roi", "classes", "grad"))
    assert_gradients(tuple(results.values()), values, problem["convention"], rounding, 2e-6)


def assert_true_loss(problem, results):
    """Compare the loss with loops over pixels, and its gradients with finite differences along one direction."""
    rng = np.random.default_rng(0)
    steps = {name: torch.from_numpy(rng.normal(size=problem[name].shape)) for name in ("features", "weight")}

    def losses_at(distance):
        features, weight = (problem[name] + distance * steps[name] for name in ("features", "weight"))
        roi = problem["roi"].unpack()
        for i, k in enumerate(problem["classes"]):
            alpha = (weight[k] / features[0, 0].numel()).tolist()
            true = truth(features[i].tolist(), alpha, [0.0], roi[i].tolist(), 0.5)
            yield 1 - 2 * true.soft_intersection / true.soft_area if true.roi_area else 0.0

    np.testing.assert_allclose(results["loss"], list(losses_at(0.0)), rtol=0, atol=1e-7)
    near, far = (np.array(list(losses_at(distance))) for distance in (-1e-6, 1e-6))
    slope = (problem["grad"].numpy() * (far - near) / 2e-6).sum()
    claimed = sum((results[name] * steps[name]).sum().item() for name in steps)
    size = sum((results[name] * steps[name]).abs().sum().item() for name in steps)
    assert abs(claimed - slope) <= 1e-5 * (1 + size)


def launch_loss(module):
    features, weight, _, roi, classes = scene(1, 512, 3, 14, 224)
    _, tensors, launch = module.prepared(features, weight, roi, classes, "grad-cam", True)
    return launch.arguments(1, tensors)


CONTRACTS = {
    "acquisition": Contract(acquisitions(True), acquisitions(False), run_acquisition, assert_equal_acquisition,
                            assert_true_acquisition, launch_acquisition),
    "loss": Contract(losses(True), losses(False), run_loss, assert_equal_loss, assert_true_loss, launch_loss),
}  # fmt: skip

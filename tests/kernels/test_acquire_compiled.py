"""`acquire` as an operator of PyTorch: registration, fake tensors, torch.compile."""

import pytest
import torch

from egal_kernels import ArgumentError, acquire, pack_roi

FIELDS = ("logits", "entropy", "predicted", "intersection", "cam_area", "roi_area", "soft_intersection", "soft_area")


def arguments(dtype=torch.float32, batch=3):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 5, 4, 3, generator=g).to(dtype)
    weight, bias = torch.randn(2, 5, generator=g), torch.randn(2, generator=g)
    return features, weight, bias, pack_roi(torch.rand(batch, 37, 20, generator=g) < 0.4)


def operands(features, weight, bias, roi, classes=None, alpha=None, logits=None, backend="auto"):
    return features, weight, bias, roi.bits, roi.height, 0.5, "grad-cam", classes, alpha, logits, backend


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "cpu"), (torch.float16, "reference"), (torch.float64, "auto")]
)
def test_the_operator_passes_opcheck_for_a_linear_head(dtype, backend):
    features, weight, bias, roi = arguments(dtype)
    classes = torch.tensor([0, 1, 1])
    torch.library.opcheck(
        torch.ops.egal_kernels.acquire.default, operands(features, weight, bias, roi, backend=backend)
    )
    torch.library.opcheck(torch.ops.egal_kernels.acquire.default, operands(features, weight, None, roi, classes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_passes_opcheck_for_any_head(dtype):
    features, _, _, roi = arguments(dtype)
    head = {"alpha": torch.randn(3, 5, dtype=dtype), "logits": torch.randn(3, 4, dtype=dtype)}
    torch.library.opcheck(torch.ops.egal_kernels.acquire.default, operands(features, None, None, roi, **head))


def test_a_compiled_graph_gives_the_eager_result():
    def step(features, weight, bias, roi):
        out = acquire(features.relu(), weight, bias, roi, threshold=0.3)
        return out, out.entropy + 0.5 * (1 - out.dice("one"))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (3, 6):  # the second with a dynamic batch
        values = arguments(batch=batch)
        out, score = compiled(*values)
        expected, expected_score = step(*values)
        for name in FIELDS:
            assert torch.equal(getattr(out, name), getattr(expected, name)), name
        assert torch.equal(score, expected_score)


def test_no_gradient_flows_through_the_operator():
    features, weight, bias, roi = arguments()
    out = torch.compile(acquire, fullgraph=True, backend="aot_eager")(features.requires_grad_(), weight, bias, roi)
    assert not any(value.requires_grad for value in vars(out).values())


def test_the_range_of_classes_is_checked_in_a_graph_too():
    features, weight, bias, roi = arguments()
    compiled = torch.compile(acquire, fullgraph=True, backend="aot_eager")
    with pytest.raises(ArgumentError, match=r"classes: expected values in \[0, 2\), got 7"):
        compiled(features, weight, bias, roi, classes=torch.tensor([0, 7, 1]))


def test_eager_calls_bypass_the_dispatcher():
    with torch.profiler.profile() as profile:
        acquire(*arguments())
    names = {event.name for event in profile.events()}
    assert names
    assert "egal_kernels::acquire" not in names

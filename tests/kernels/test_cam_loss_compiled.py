"""`cam_loss` as an operator of PyTorch: registration, fake tensors, gradients under torch.compile."""

import pytest
import torch

from egal_kernels import ArgumentError, cam_loss, pack_roi


def arguments(dtype=torch.float32, batch=3, channels_last=False):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 5, 4, 3, generator=g).to(dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(2, 5, generator=g)
    roi = pack_roi(torch.rand(batch, 37, 20, generator=g) < 0.4)
    return features.requires_grad_(), weight.requires_grad_(), roi, torch.arange(batch) % 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_operator_passes_opcheck(dtype, channels_last):
    features, weight, roi, classes = arguments(dtype, channels_last=channels_last)
    options = roi.bits, roi.height, classes, "grad-cam", "cpu"
    torch.library.opcheck(torch.ops.egal_kernels.cam_loss.default, (features, weight, *options, True))
    torch.library.opcheck(torch.ops.egal_kernels.cam_loss.default, (features, weight.detach(), *options, False))


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_the_backward_operator_passes_opcheck(needed):
    features, weight, roi, classes = arguments()
    forward = torch.ops.egal_kernels.cam_loss
    _, slope, moment = forward(features, weight, roi.bits, roi.height, classes, "grad-cam", "cpu", True)
    saved = torch.rand(3), weight.detach(), classes, slope.detach(), moment.detach()
    backward = torch.ops.egal_kernels.cam_loss_backward.default
    for channels_last in (False, True):
        torch.library.opcheck(backward, (*needed, *saved, torch.bfloat16, channels_last, "cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiled_graph_gives_the_eager_gradients(dtype):
    def step(features, weight, roi, classes):
        return cam_loss(features * 2, weight, roi, classes, convention="monai").mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (3, 6):  # the second with a dynamic batch
        features, weight, roi, classes = arguments(dtype, batch)
        losses = [run(features, weight, roi, classes) for run in (step, compiled)]
        ours, theirs = (torch.autograd.grad(loss, (features, weight)) for loss in losses)
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
        for x, y in zip(ours, theirs, strict=True):
            assert x.abs().max() > 0
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_the_range_of_classes_is_checked_in_a_graph_too():
    features, weight, roi, _ = arguments()
    compiled = torch.compile(cam_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(ArgumentError, match=r"classes: expected values in \[0, 2\), got 7"):
        compiled(features, weight, roi, torch.tensor([0, 7, 1]))


def test_eager_calls_bypass_the_dispatcher():
    features, weight, roi, classes = arguments()
    with torch.profiler.profile() as profile:
        cam_loss(features, weight, roi, classes).sum().backward()
    names = {event.name for event in profile.events()}
    assert names
    assert not any(name.startswith("egal_kernels::") for name in names)

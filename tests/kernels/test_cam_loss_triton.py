"""The Triton backend of `cam_loss` without a GPU: in the interpreter, and compiled ahead of time."""

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from egal_kernels import ArgumentError, cam_loss, pack_roi
from egal_kernels.shared.checks import check_classes, check_labels
from kernels.triton_tools import TARGETS, assert_passes_interpreted, compile_ahead, spills


def test_the_kernels_are_right_in_the_interpreter():
    assert_passes_interpreted("cam_loss_interpreted.py", 5, "-x")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("channels", "side", "size", "dtype", "layout"),
    [
        (1024, 7, 224, torch.float32, torch.contiguous_format),
        (512, 32, 1024, torch.bfloat16, torch.channels_last),
    ],
    ids=str,
)
def test_real_shapes_compile_without_spills(channels, side, size, dtype, layout, target, tmp_path):
    from egal_kernels.loss import triton as backend

    features = torch.empty(1, channels, side, side, dtype=dtype).contiguous(memory_format=layout)
    roi = pack_roi(torch.zeros(1, size, size, dtype=torch.bool))
    classes = torch.zeros(1, dtype=torch.int64)
    _, tensors, launch = backend.prepared(features, torch.empty(3, channels), roi, classes, "grad-cam", True)
    assert spills(compile_ahead(launch.kernel, launch.arguments(1, tensors), target), target, tmp_path) == 0


def test_without_a_gpu_the_error_says_what_to_do():
    roi, classes = pack_roi(torch.zeros(1, 4, 4, dtype=torch.bool)), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ArgumentError, match="backend: 'triton' takes features on a CUDA or ROCm device, got cpu; move"):
        cam_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2), roi, classes, backend="triton")


def test_on_cuda_the_host_does_not_wait_for_the_check_of_classes():
    with FakeTensorMode():  # tensors without values: whatever reads one raises
        classes = torch.zeros(3, dtype=torch.int64, device="cuda")
        check_labels(classes, 4)
        with pytest.raises(DynamicOutputShapeException):
            check_classes(classes, 4)

"""The settings of a process: what repeats a run, and what a second batch costs."""

import os
import subprocess
import sys

import pytest
import torch

from egal_bench.models.process import prepare_process, reproducible

FAULTS = """
import resource
import torch
from egal_bench.models.network import build
from egal_bench.models.process import prepare_process
prepare_process()
network = build("resnet18", 2, image_channels=1, image_size=224, size=None, seed=0).eval()
images = torch.zeros((4, 1, 224, 224), dtype=torch.uint8)
faults = []
with torch.inference_mode():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(images)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator has these settings")
def test_second_batch_takes_no_fresh_pages():
    """The output of the first convolution alone has 4·64·112²·4 bytes, which are 3136 pages."""
    process = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, *later = map(int, process.stdout.split())
    assert first > 3136
    assert min(later) < 1000


def test_cublas_gets_a_fixed_workspace_unless_the_user_chose_one(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare_process()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_process()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.fixture
def tf32_flags():
    """Return two functions that set and read PyTorch's flags for TF32, which are restored after the test."""

    def read() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def write(convolutions: bool, products: bool) -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products

    before = read()
    yield write, read
    write(*before)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("before", [(True, False), (False, True)])
def test_reproducible_sets_and_restores_both_flags_of_tf32(tf32_flags, before, tf32):
    write, read = tf32_flags
    write(*before)
    with reproducible(1, tf32=tf32):
        assert read() == (tf32, tf32)
    assert read() == before
    with pytest.raises(KeyError), reproducible(1, tf32=tf32):
        raise KeyError
    assert read() == before


def test_reproducible_spares_the_filling_of_new_tensors():
    before = torch.utils.deterministic.fill_uninitialized_memory
    with reproducible(1):
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory == before


def test_reproducible_limits_threads_and_restores_all_settings():
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    inside = []
    with pytest.raises(KeyError), reproducible(before[0] + 1):
        inside += [torch.get_num_threads(), torch.get_deterministic_debug_mode(), {}["a run that fails"]]
    with reproducible(before[0] + 1):
        inside += [torch.get_num_threads(), torch.get_deterministic_debug_mode()]
    assert inside == [before[0] + 1, 1]  # 1: warn
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == before

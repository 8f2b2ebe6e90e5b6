"""Where a network runs."""

import pytest
import torch
from pydantic import ValidationError

from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.models.devices import chosen_device, device_kind, out_of_memory


@pytest.fixture
def machine(monkeypatch):
    """Return a function that gives this machine so many CUDA devices and perhaps an MPS device."""

    def build(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return build


@pytest.mark.parametrize(
    ("cuda", "mps", "requested", "chosen"),
    [
        (0, False, "auto", "cpu"), (0, True, "auto", "mps"), (2, False, "auto", "cuda"), (2, True, "auto", "cuda"),
        (2, False, "cpu", "cpu"), (2, False, "cuda:1", "cuda:1"), (0, True, "mps", "mps"),
    ],
)  # fmt: skip
def test_auto_is_the_first_device_that_the_machine_has(machine, cuda, mps, requested, chosen):
    machine(cuda, mps)
    assert chosen_device(requested) == chosen


def test_absent_device_is_refused_by_its_flag(machine):
    machine(cuda=0)
    for requested in ("mps", "cuda", "cuda:0", "cuda:1"):
        with pytest.raises(BenchError, match=f"--device {requested}: this machine has none"):
            chosen_device(requested)
    machine(cuda=2)
    with pytest.raises(BenchError, match=r"--device cuda:2: the last CUDA device is cuda:1"):
        chosen_device("cuda:2")


def test_kind_of_a_device_leaves_out_its_number():
    assert [device_kind(device) for device in ("cpu", "mps", "cuda", "cuda:1")] == ["cpu", "mps", "cuda", "cuda"]


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cuda1", "cpu:0", "mps:0", "CUDA", "gpu", ""])
def test_device_of_another_form_is_refused(device):
    with pytest.raises(ValidationError, match="device"):
        Config(device=device)


def test_lack_of_memory_is_told_from_other_errors():
    assert out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"))
    assert out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))

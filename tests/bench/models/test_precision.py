"""The precision of the trunk: float32 unless asked otherwise, and `auto` decided by the device alone."""

import pytest
import torch

from egal_bench.config import Config
from egal_bench.models.precision import autocast, chosen_precision


@pytest.fixture
def capability(monkeypatch):
    """Return a function that sets what this machine's devices are capable of."""

    def build(*, cuda: dict[str, tuple[int, int]] | None = None, hip: str | None = None, amx: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (cuda or {})[device])
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return build


def test_float32_is_the_default():
    assert Config().precision == "float32"


@pytest.mark.parametrize("requested", ["float32", "bfloat16"])
def test_named_precision_is_used_on_every_device(capability, requested):
    capability(cuda={"cuda": (7, 0)}, amx=requested == "float32")
    assert {chosen_precision(requested, device) for device in ("cpu", "cuda", "mps")} == {requested}


@pytest.mark.parametrize(
    ("version", "chosen"), [((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_auto_is_bfloat16_on_cuda_from_capability_8_0(capability, version, chosen):
    capability(cuda={"cuda": version})
    assert chosen_precision("auto", "cuda") == chosen


def test_auto_asks_the_gpu_that_the_run_uses(capability):
    capability(cuda={"cuda:0": (7, 5), "cuda:1": (9, 0)})
    assert [chosen_precision("auto", device) for device in ("cuda:0", "cuda:1")] == ["float32", "bfloat16"]


def test_auto_is_float32_where_capabilities_are_another_vendors(capability):
    capability(cuda={"cuda": (9, 4)}, hip="6.2")
    assert chosen_precision("auto", "cuda") == "float32"


@pytest.mark.parametrize(("amx", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_on_cpus_with_amx(capability, amx, chosen):
    capability(amx=amx)
    assert chosen_precision("auto", "cpu") == chosen
    assert chosen_precision("auto", "mps") == "float32"


def test_autocast_changes_products_only_where_bfloat16_is_chosen():
    product = torch.eye(2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast("cpu", precision):
            assert (product @ product).dtype == dtype

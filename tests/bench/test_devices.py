"""Where a network runs, and the memory it runs in."""

import subprocess
import sys

import pytest

from egal_bench.devices import chosen_device
from egal_bench.errors import BenchError

FAULTS = """
import resource
import torch
from egal_bench import model
network = model.build("resnet18", 2, image_channels=1, image_size=224, size=None, seed=0).eval()
images = torch.zeros((16, 1, 224, 224), dtype=torch.uint8)
faults = []
with torch.inference_mode():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(images)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's allocator")
def test_second_batch_takes_no_fresh_pages():
    """The first convolution's output alone has 16·64·112²·4 bytes, 12544 pages."""
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    first, *later = map(int, out.split())
    assert first > 12544
    assert min(later) < 1000


def test_absent_device_is_refused_by_its_flag(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(BenchError, match="--device mps: this machine has none"):
        chosen_device("mps")

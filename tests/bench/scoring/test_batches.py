"""Batches that exceed the memory of the device: halved once, with a message, and never mistaken for another error."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.models.network import Network
from egal_bench.scoring.pool_pass import score

HALVED = "a batch of 32 exceeds the memory of cpu: continuing with batches of 16"


@pytest.fixture(scope="module")
def dataset(phantom_dataset):
    return phantom_dataset(90, shard_mb=0.05)


class Limited(nn.Module):
    """A trunk on a device whose memory holds `limit` images; `sizes` are those of the batches that it has passed."""

    def __init__(self, trunk: nn.Module, limit: int) -> None:
        super().__init__()
        self.trunk, self.limit, self.sizes = trunk, limit, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("tried to allocate 1 GiB")
        self.sizes.append(len(x))
        return self.trunk(x)


def limited(limit: int) -> Network:
    network = small_cnn(3).eval()
    network.trunk = Limited(network.trunk, limit)
    return network


def scores(network: Network, dataset, positions: np.ndarray):
    return score(network, dataset, positions, Config(), "cpu", needs={"roi"})


def test_out_of_memory_halves_the_batch_once_and_says_so(dataset, capsys):
    positions, network = np.arange(len(dataset.keys)), limited(20)
    expected = scores(small_cnn(3).eval(), dataset, positions)
    halved = scores(network, dataset, positions)
    np.testing.assert_allclose(halved.logits, expected.logits, atol=1e-5)
    assert network.trunk.sizes == [16, 16, 16, 16, 16, 10]
    assert " ".join(capsys.readouterr().err.split()) == HALVED


@pytest.mark.parametrize(
    ("samples", "limit", "halved", "refused"), [(90, 15, [32], 16), (9, 3, [9], 4), (9, 0, [9], 4), (1, 0, [], 1)]
)
def test_half_a_batch_that_is_too_much_as_well_is_an_error(dataset, capsys, samples, limit, halved, refused):
    network = limited(limit)
    with pytest.raises(BenchError, match=rf"^a batch of {refused} exceeds the memory of cpu: end .*, lower --size, or"):
        scores(network, dataset, np.arange(samples))
    messages = re.findall(r"a batch of (\d+) exceeds", capsys.readouterr().err)
    assert messages == [str(size) for size in halved]
    assert not network.trunk.sizes


def test_error_of_the_network_is_not_taken_for_lack_of_memory(dataset):
    def broken(*_):
        raise RuntimeError("the map is too small")

    network = small_cnn(3).eval()
    network.trunk.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="the map is too small"):
        scores(network, dataset, np.arange(9))


SMALL_MEMORY = """
import re, resource, sys
import numpy as np, torch
from pathlib import Path
from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.scoring.pool_pass import score
torch.set_num_threads(1)
dataset = open_dataset(sys.argv[1])
network = small_cnn().eval()
run = lambda: score(network, dataset, np.arange(90), Config(), "cpu", needs={"roi"})
expected = run()
network.trunk.register_forward_hook(lambda module, args, out: [out, torch.empty(len(out) << 27, dtype=torch.uint8)][0])
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30),) * 2)
np.testing.assert_allclose(run().logits, expected.logits, atol=1e-5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process in this way")
def test_process_of_limited_memory_halves_its_batch(dataset, child_environment):
    """128 MB per image: 4 GB for a batch of 32, 2 GB for half of it, and 3 GB are allowed."""
    process = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, str(dataset.shards.where)],
        capture_output=True, text=True, env=child_environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert " ".join(process.stderr.split()) == HALVED

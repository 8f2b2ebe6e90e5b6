"""The copy of a network for passes: precision of its weights, compilation, and when that is chosen."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.networks import small_cnn
from egal_bench import compare
from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.models.heads import LinearHead
from egal_bench.models.inference import Compiled, chosen_compile, inference_network
from egal_bench.models.network import Network, build
from egal_bench.models.precision import autocast
from egal_bench.scoring.pool_pass import score
from egal_bench.tables.folder import ResultsFolder, RunName


@torch.no_grad()
def test_weights_in_bfloat16_err_no_more_than_autocast_does():
    network = build("resnet18", 3, image_channels=3, image_size=64, size=None, seed=0).eval()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    copied, exact = inference_network(network, "cpu", "bfloat16"), network.features(images)
    convolutions = [module for module in copied.trunk.modules() if isinstance(module, nn.Conv2d)]
    assert {convolution.weight.dtype for convolution in convolutions} == {torch.bfloat16}
    with autocast("cpu", "bfloat16"):
        errors = [float((maps.float() - exact).norm()) for maps in (copied.features(images), network.features(images))]
    assert errors[0] < 1.1 * errors[1]


class PartlyInFloat32(nn.Module):
    """A trunk that keeps one of its three convolutions in float32, and reads the weights of one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.read = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))

    def forward(self, images):
        maps = self.narrow(images)
        with torch.autocast("cpu", enabled=False):
            maps = self.wide(maps.float())
        return nn.functional.conv2d(maps, self.read.weight)


class KeepsByItsImages(PartlyInFloat32):
    """The same, in the usual words, which PyTorch refuses for images without data."""

    def forward(self, images):
        maps = self.narrow(images)
        with torch.autocast(images.device.type, enabled=False):
            maps = self.wide(maps.float())
        return nn.functional.conv2d(maps, self.read.weight)


class ReadsTwice(PartlyInFloat32):
    """A trunk that also reads the weights of its layers in other ways."""

    def forward(self, images):
        maps = self.read(self.wide(self.narrow(images)) * self.wide.weight.sum())
        with torch.autocast("cpu", enabled=False):
            return nn.functional.conv2d(maps.float(), self.narrow.weight)


class InFloat16(PartlyInFloat32):
    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.float16):
            return self.read(self.wide(self.narrow(images)))


@pytest.mark.parametrize("trunk", [KeepsByItsImages, ReadsTwice, InFloat16])
@torch.no_grad()
def test_copy_reads_weights_in_the_precision_of_the_trunk(trunk):
    torch.manual_seed(0)
    network = Network(trunk(), LinearHead(3, 2), [0.5] * 3, [0.25] * 3, 16).eval()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with autocast("cpu", "bfloat16"):
        assert torch.equal(inference_network(network, "cpu", "bfloat16").features(images), network.features(images))


def test_weights_that_are_read_as_a_function_are_converted_too():
    folds = build("eva02_tiny_patch14_224", 2, image_channels=3, image_size=56, size=None, seed=0).folds
    assert sum("qkv" in name for name in folds.autocast) == 12


@torch.no_grad()
def test_layers_that_a_trunk_keeps_in_float32_stay_there():
    network = Network(PartlyInFloat32(), LinearHead(3, 2), [0.5] * 3, [0.25] * 3, 16).eval()
    copied = inference_network(network, "cpu", "bfloat16")
    assert {name: weight.dtype for name, weight in copied.trunk.named_parameters()} == {
        "narrow.weight": torch.bfloat16, "wide.weight": torch.float32, "read.weight": torch.bfloat16,
    }  # fmt: skip
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with autocast("cpu", "bfloat16"):
        assert torch.equal(copied.features(images), network.features(images))


@torch.no_grad()
def test_copy_follows_the_network_only_when_it_is_made_anew():
    network = small_cnn().eval()
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    first = inference_network(network, "cpu", "float32")
    for parameter in network.trunk.parameters():
        parameter.mul_(1.5)
    second = inference_network(network, "cpu", "float32")
    torch.testing.assert_close(second.features(images), network.features(images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first.features(images), second.features(images), rtol=1e-2)


@pytest.mark.parametrize(
    ("device", "images", "side", "threads", "expected"),
    [
        ("cpu", 5_000, 224, 1, "on"),
        ("cpu", 4_999, 224, 1, "off"),
        ("cpu", 5_000, 224, 2, "off"),
        ("cpu", 20_000, 112, 1, "on"),
        ("cpu", 19_999, 112, 1, "off"),
        ("cuda:1", 999_999, 224, 1, "off"),
        ("cuda:1", 1_000_000, 224, 8, "on"),
        ("mps", 10**9, 224, 1, "off"),
    ],
)
def test_auto_compiles_where_the_pass_is_long(device, images, side, threads, expected):
    assert chosen_compile("auto", device, images, side, threads) == expected
    assert chosen_compile("off", device, images, side, threads) == "off"
    assert chosen_compile("on", device, images, side, threads) == "on"


def test_without_a_compiler_auto_is_off_and_on_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert chosen_compile("auto", "cpu", 10**9, 224, 1) == "off"
    with pytest.raises(BenchError, match="--compile on: no C\\+\\+ compiler is installed"):
        chosen_compile("on", "cpu", 10, 224, 1)


def test_network_that_cannot_be_compiled_is_refused_with_the_reason(monkeypatch):
    def compiled(trunk, **options):
        def fail(images):
            raise RuntimeError("no lowering for aten.something\nand a page of details")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    trunk = Compiled(nn.Conv2d(1, 1, 1), batch=2)
    with pytest.raises(BenchError, match=r"compile this network: no lowering for aten.something; give --compile off"):
        trunk(torch.zeros(2, 1, 4, 4))


def test_compiled_trunk_gets_batches_of_one_size(monkeypatch):
    sizes = []
    monkeypatch.setattr(torch, "compile", lambda trunk, **options: lambda images: sizes.append(len(images)) or images)
    images = torch.arange(5.0).view(5, 1, 1, 1)
    assert torch.equal(Compiled(nn.Conv2d(1, 1, 1), batch=2)(images), images)
    assert sizes == [2, 2, 2]


def test_compiled_batches_are_halved_where_the_memory_ends(monkeypatch):
    sizes = []

    def compiled(trunk, **options):
        def run(images):
            sizes.append(len(images))
            if len(images) > 4:
                raise torch.OutOfMemoryError
            return images

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    trunk, images = Compiled(nn.Conv2d(1, 1, 1), batch=8), torch.arange(8.0).view(8, 1, 1, 1)
    with pytest.raises(torch.OutOfMemoryError):
        trunk(images)
    parts = [trunk(images[:4]), trunk(images[4:])]  # what a pass does then
    assert torch.equal(torch.cat(parts), images)
    assert sizes == [8, 4, 4]
    short = Compiled(nn.Conv2d(1, 1, 1), batch=256)  # for a pass of fewer images than a batch
    with pytest.raises(torch.OutOfMemoryError):
        short(images)
    assert short.batch == 4


def test_no_timing_decides_which_kernels_are_compiled(monkeypatch):
    from torch._inductor import config

    deterministic = []

    def compiled(trunk, **options):
        return lambda images: deterministic.append(config.deterministic) or images

    monkeypatch.setattr(torch, "compile", compiled)
    Compiled(nn.Conv2d(1, 1, 1), batch=2)(torch.zeros(2, 1, 4, 4))
    assert deterministic == [True]
    assert not config.deterministic  # the user's own compilations are left alone


def test_compiled_pass_is_the_same_wherever_it_is_cut(phantom_dataset):
    dataset = phantom_dataset(90)
    config, network = Config(compile="on"), inference_network(small_cnn(), "cpu", "float32", "on")
    eager = score(small_cnn().eval(), dataset, dataset.pool, Config(), "cpu", needs={"roi"})
    long = score(network, dataset, dataset.pool, config, "cpu", needs={"roi"})
    parts = [score(network, dataset, part, config, "cpu", needs={"roi"}) for part in np.split(dataset.pool, [5, 38])]
    np.testing.assert_allclose(long.logits, eager.logits, rtol=1e-4, atol=1e-5)
    for name in ("logits", "entropy"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(long, name))


def test_comparison_records_whether_its_passes_were_compiled(tmp_path):
    settings = {"phantom_samples": 60, "size": 32, "init": 6, "budget": 4, "rounds": 1, "steps": 2, "workers": 1}
    tables = {}
    for compile in ("auto", "on"):
        config = Config(strategies=("entropy",), seeds=1, compile=compile, out=tmp_path / compile, **settings)
        comparison = compare(config)
        tables[compile] = comparison.rounds
        record = ResultsFolder(tmp_path / compile).record(RunName("phantom-brain", "entropy", 0))
        assert record["settings"]["compile"] == {"auto": "off", "on": "on"}[compile]
    np.testing.assert_allclose(tables["on"]["nll"], tables["auto"]["nll"], rtol=1e-3)

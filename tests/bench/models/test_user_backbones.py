"""A network of the user's own, named `module:factory`: found, checked, identified, and shown when it fails."""

import sys
from itertools import count
from pathlib import Path

import pytest
import torch

import egal_bench
from egal_bench.errors import BenchError, UserCodeError
from egal_bench.models import network
from egal_bench.models.backbones import source_digest

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=4, padding=1), nn.ReLU())
"""
_numbers = count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes source code into a fresh module of the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def write(source: str) -> str:
        name = f"user_module_{next(_numbers)}"
        Path(f"{name}.py").write_text(source)
        return name

    return write


def build(backbone, channels=1, seed=0, weights=None):
    return network.build(
        backbone, 3, image_channels=channels, image_size=32, size=None, seed=seed, weights=weights
    ).eval()


def returning(expression: str) -> str:
    return f"from torch import nn\nimport torch\n\ndef net():\n    return {expression}\n"


def test_a_factory_gives_the_trunk_and_the_seed_its_weights(module):
    backbone = f"{module(NET)}:net"
    one, same, other = build(backbone, seed=1), build(backbone, seed=1), build(backbone, seed=2)
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = one.trunk.model((images / 255 - 0.5) / 0.25)
        torch.testing.assert_close(one.features(images), expected)
        assert torch.equal(one(images), same(images))
        assert not torch.equal(one(images), other(images))
    assert one.head.weight.shape == (3, 8)


def test_the_network_of_the_documentation_is_built_and_folded(module):
    page = (Path(__file__).parents[3] / "docs/training.md").read_text()
    source = page.partition("```python\n")[2].partition("```")[0]
    network = build(f"{module(source)}:net")
    assert network.folds.behind == (("model.0", "model.1"),)
    assert network(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_checkpoints_use_the_names_of_the_users_module(module):
    backbone = f"{module(NET)}:net"
    state = build(backbone, seed=1).trunk.model.state_dict()
    loaded = build(backbone, seed=2, weights=state).trunk.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("expression", "packed", "expected"),
    [("nn.Conv2d(3, 4, 3)", 1, 3), ("nn.Conv2d(3, 4, 3)", 3, 3), ("nn.AvgPool2d(4)", 3, 3), ("nn.AvgPool2d(4)", 1, 1)],
)
def test_input_channels_come_from_the_first_convolution_or_the_images(module, expression, packed, expected):
    built = build(f"{module(returning(expression))}:net", channels=packed)
    assert built.mean.shape == (1, expected, 1, 1)
    assert built(torch.zeros(2, packed, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_a_declared_number_of_input_channels_counts(module):
    source = "from torch import nn\n\nclass Net(nn.AvgPool2d):\n    in_channels = 3\n\ndef net():\n    return Net(4)\n"
    assert build(f"{module(source)}:net").mean.shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("nn.Linear", r"returns a type, expected a torch\.nn\.Module"),
        ("nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten())", r"returns \[1, 7200\] for one image, expected a map"),
        ("nn.Sequential(nn.Conv2d(1, 8, 3), nn.Unflatten(1, (4, 2)))", "returns .* for one image, expected a map"),
        ("nn.Conv2d(1, 8, 64)", "raised RuntimeError: Calculated padded input size"),
    ],
)
def test_what_is_no_map_is_refused(module, expression, says):
    with pytest.raises(BenchError, match=says):
        build(f"{module(returning(expression))}:net")


def test_a_channels_last_map_is_refused(module):
    source = NET + "\nclass Last(nn.Module):\n    def forward(self, x):\n        return net()(x).permute(0, 2, 3, 1)\n"
    with pytest.raises(BenchError, match=r"returns \[1, 8, 8, 16\].*channels-last map; return map\.permute"):
        build(f"{module(source.replace('(1, 8,', '(1, 16,'))}:Last")


def test_one_module_for_all_runs_is_refused(module):
    name = module(NET + "\nshared = net()\n\ndef again():\n    return shared\n")
    build(f"{name}:again")
    with pytest.raises(BenchError, match="returns the same module twice, so that runs would share its weights"):
        build(f"{name}:again")


def test_colour_images_for_a_grey_network_are_refused(module):
    with pytest.raises(BenchError, match="takes 1-channel images, but the packed images have 3 channels"):
        build(f"{module(NET)}:net", channels=3)


def test_exceptions_of_the_factory_and_the_module_are_located(module):
    name = module("import torch\nfrom torch import nn\n\ndef net():\n    raise OSError('no file')\n")
    with pytest.raises(UserCodeError, match=rf"^backbone '{name}:net' raised OSError: no file \({name}.py, line 5\)"):
        build(f"{name}:net")
    name = module(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n        return x @ x[0, 0, :3]\n"
    )
    with pytest.raises(UserCodeError, match=rf"^backbone '{name}:Net' raised RuntimeError: .* \({name}.py, line 6\)"):
        build(f"{name}:Net")
    name = module("import torch\n\nassert False, 'broken'\n")
    with pytest.raises(
        UserCodeError, match=rf"--backbone {name}:net raised AssertionError: broken \({name}.py, line 3\)"
    ):
        build(f"{name}:net")


def test_full_memory_in_the_users_module_stays_a_full_memory(module):
    """A pass over the pool answers this error with a smaller batch."""
    source = "from torch import nn\n\nclass Net(nn.Module):\n    full = False\n    def forward(self, x):\n"
    source += (
        "        if Net.full:\n            raise RuntimeError('out of memory')\n        return x[:, :, ::4, ::4]\n"
    )
    name = module(source)
    built = build(f"{name}:Net")
    sys.modules[name].Net.full = True
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        built(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


def test_names_that_do_not_exist_are_refused(module):
    with pytest.raises(BenchError, match="--backbone absent_module:net: No module named 'absent_module'"):
        build("absent_module:net")
    name = module(NET)
    with pytest.raises(BenchError, match=f"--backbone {name}:nett: module '{name}' has no attribute 'nett'"):
        build(f"{name}:nett")
    with pytest.raises(BenchError, match="--backbone :net: expected module:name"):
        build(":net")


def test_source_digest_follows_the_file_that_defines_the_factory(module):
    name = module(NET)
    first = source_digest(f"{name}:net")
    Path(f"{name}.py").write_text(NET + "# edited\n")
    second = source_digest(f"{name}:net")
    importing = module(f"from {name} import net\n")
    third = source_digest(f"{importing}:net")
    Path(f"{name}.py").write_text(NET)
    assert len({first, second, third, source_digest(f"{importing}:net")}) == 4
    assert source_digest(f"{name}:net") == first
    assert source_digest("resnet18") == source_digest("small-cnn") == ""


def test_worker_processes_find_the_users_network(module, egal_bench_here):
    process = egal_bench_here(
        "compare", f"--backbone={module(NET)}:net", "--phantom-samples=80", "--size=32", "--strategies=random",
        "--seeds=2", "--init=15", "--budget=5", "--rounds=1", "--steps=2", "--workers=2", "--out=out",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert len(egal_bench.load("out")["rounds"]) == 4

"""What the tests of `egal-bench score` share: two small pools, their network, and scores without images."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from egal_bench.cli import main
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.models.network import of_config
from egal_bench.models.saving import network_file
from egal_bench.querying.query import Request, run_query
from egal_bench.querying.score_files import Part
from egal_bench.strategies import Overlap
from egal_shards import pack
from egal_shards.sources import phantom

SIZE = 32  # pixels per side


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with the sets `north` and `south`, in several shards each, and `network.safetensors` for them."""
    folder = tmp_path_factory.mktemp("pools")
    for name, samples, seed in (("north", 80, 0), ("south", 60, 1)):
        source = phantom(samples=samples, size=SIZE, roi_area=0.1, seed=seed)
        pack(source, folder / name, size=SIZE, progress=False, shard_mb=0.03)
    write_network(folder / "north", folder / "network.safetensors")
    return folder


def write_network(shards: Path, file: Path, seed: int = 0, **settings) -> None:
    """Write a small-cnn with random weights for the images of a shard set."""
    dataset = open_dataset(shards)
    config = Config(**{"backbone": "small-cnn"} | settings)
    file.write_bytes(network_file(of_config(config, dataset, seed), dataset, config))


def queried(home, out, strategy="egal", top=6, shards=("north", "south"), settings=None, **fields):
    """Return the result of a query on the sets of `home`."""
    config = Config(**{"workers": 1, "device": "cpu"} | (settings or {}))
    paths = tuple(str(home / name) for name in shards)
    request = {"shards": paths, "strategy": strategy, "top": top, "config": config, "out": out}
    return run_query(Request(**{"network": home / "network.safetensors"} | request | fields))


@pytest.fixture(scope="session")
def scored(home, tmp_path_factory):
    """The results of a query on both sets by egal."""
    return queried(home, tmp_path_factory.mktemp("scored") / "out").out


@pytest.fixture
def fresh_query(home, tmp_path):
    """Return a function that runs a query on both sets, into tmp_path/fresh unless told otherwise."""
    return partial(queried, home, tmp_path / "fresh")


@pytest.fixture
def query(home, scored, tmp_path):
    """Return a function that runs a query on both sets into tmp_path/out, which holds their scores already."""
    shutil.copytree(scored, tmp_path / "out")
    return partial(queried, home, tmp_path / "out")


@pytest.fixture
def score_status(home, monkeypatch):
    """Return a function that runs `egal-bench score WORDS` in this process and in `home`; it returns the status."""
    monkeypatch.chdir(home)

    def run(*words) -> int:
        monkeypatch.setattr("sys.argv", ["egal-bench", "score", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return run


@pytest.fixture(scope="session")
def scored_part():
    """Return a function that makes the scores of n samples; a third of them has no ROI."""

    def make(n: int, seed: int = 0, first: int = 0) -> Part:
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(n, 3)).astype(np.float32)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        area = rng.integers(1, 200, n).astype(np.int32) * (rng.random(n) > 1 / 3)
        dice = np.where(area > 0, rng.integers(0, 8, n) / 8, np.nan).astype(np.float32)
        keys = np.array([f"k{first + i:06}" for i in range(n)])
        overlap = Overlap(area, area, area, dice)
        return Part(keys, np.full(n, "g"), np.arange(n), logits, -(p * np.log(p)).sum(1).astype(np.float32), overlap)

    return make

"""Fixtures that the tests of egal_bench share."""

import functools

import pytest

from bench.command_line import egal_bench
from bench.in_process import egal_bench_here, unrendered, user_module  # noqa: F401, fixtures
from bench.ray_nodes import ray_cluster  # noqa: F401, a fixture
from bench.tiny import FLAGS


@pytest.fixture
def one_thread():
    """Limit PyTorch to one thread, as a run of a comparison does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory):
    """Return a function that packs a brain phantom of 32 pixels per side, once for all tests, and opens it."""
    from egal_bench.dataset import open_dataset
    from egal_shards import pack
    from egal_shards.sources import phantom

    @functools.cache
    def packed(samples: int, seed: int = 0, **settings):
        path = tmp_path_factory.mktemp("phantom") / "set"
        source = phantom(samples=samples, size=32, roi_area=0.08, seed=seed)
        pack(source, path, size=32, progress=False, **settings)
        return open_dataset(path)

    return packed


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The results folder of a tiny comparison that the command line has made with one worker, and its process."""
    cwd = tmp_path_factory.mktemp("finished")
    flags = [*FLAGS, "--workers=1", "--out=runs/one", "--json"]
    process = egal_bench("compare", *flags, cwd=cwd, status=0, rendered=True)
    return cwd / "runs" / "one", process

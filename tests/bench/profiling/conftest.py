"""What the tests of `egal-bench profile` share: a small phantom, its network, and the command in this process."""

import pytest

from egal_bench.cli import main
from egal_bench.config import Config
from egal_bench.models import network as networks
from egal_bench.profiling.stages import Resident, flop_of_trunk, stages


@pytest.fixture(scope="session")
def dataset(phantom_dataset):
    """A brain phantom of 60 samples, 32 pixels per side."""
    return phantom_dataset(60)


@pytest.fixture(scope="session")
def config(dataset):
    """The settings under which everything here is measured, with device and precision resolved."""
    return Config(shards=(dataset.shards.where,), backbone="small-cnn", precision="float32", device="cpu")


@pytest.fixture
def network(dataset, config):
    """A small-cnn with random weights, in evaluation mode."""
    return networks.of_config(config, dataset, seed=1).eval()


@pytest.fixture
def positions(dataset):
    """24 positions of the pool, not in ascending order."""
    return dataset.pool[::-1][:24]


@pytest.fixture
def resident(network, dataset, positions, config):
    """The samples at `positions` in batches of 8."""
    return Resident.of(network, dataset, positions, config, 8)


@pytest.fixture
def by_name(network, dataset, resident, config):
    """The stages over the samples at `positions`, by name."""
    return stages(network, dataset, resident, config, 8, flop_of_trunk(network, resident.images[0][:1]))


@pytest.fixture
def profile_status(tmp_path, monkeypatch):
    """Return a function that runs `egal-bench profile WORDS` in this process and in tmp_path; it returns the status."""
    monkeypatch.chdir(tmp_path)

    def run(*words) -> int:
        monkeypatch.setattr("sys.argv", ["egal-bench", "profile", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return run

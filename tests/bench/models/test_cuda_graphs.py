"""Training steps that replay a recorded trunk; a stand-in for PyTorch's recorder works without a GPU."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from bench.networks import small_cnn
from egal_bench.config import Config
from egal_bench.errors import BenchError, UserCodeError
from egal_bench.learners.finetune import FinetuneLearner
from egal_bench.models.cuda_graphs import RecordedTrunk, in_steps
from egal_bench.models.network import build
from egal_bench.models.precision import autocast
from egal_bench.runs.grid import resolved

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = {"cuda_graphs": True, "learning_rate": 5e-3, "batch_size": 8, "steps": 12}
EPISODES = {"head": "prototypical", "epochs": 1, "episodes": 4}


@pytest.fixture
def recorded(monkeypatch) -> list[torch.Size]:
    """Replace PyTorch's recorder by one for the CPU; return the shapes that it records.

    As the real one does, it refuses autocast's cache, warms up by three passes, keeps the sample as the input of every
    replay, and replays in the precision of the recording.
    """
    shapes = []

    def record(module, sample, allow_unused_input):
        assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        precision, (images,), forward = torch.is_autocast_enabled("cpu"), sample, module.forward
        for _ in range(3):
            torch.autograd.grad(module(images).sum(), list(module.parameters()), allow_unused=allow_unused_input)

        def replay(batch):
            assert batch.shape == images.shape
            images.copy_(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision, cache_enabled=False):
                return forward(images)

        shapes.append(images.shape)
        module.forward = replay
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return shapes


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bfloat16"}, {"explain_loss": 0.5, "early_stop": 0.2, "warm_start": True}, EPISODES],
    ids=["plain", "bfloat16", "explained and held out", "episodes"],
)
def test_two_rounds_give_the_bits_of_steps_without_a_recording(phantom_dataset, recorded, options):
    dataset, logits = phantom_dataset(150), []
    for replays in (False, True):
        config = Config(**RECIPE | options | {"cuda_graphs": replays})
        network = build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0, head=config.head)
        learner = FinetuneLearner(dataset, network, config, np.random.SeedSequence(0), "cpu")
        for round_, labels in enumerate((20, 33)):
            learner.fit(dataset.pool[:labels], round_)
        logits.append(learner.score(dataset.test, set()).logits)
        assert bool(recorded) == replays
    np.testing.assert_array_equal(logits[0], logits[1])


def test_each_size_of_batch_is_recorded_once_per_round(phantom_dataset, recorded):
    dataset = phantom_dataset(150)
    learner = FinetuneLearner(dataset, small_cnn(), Config(**RECIPE), np.random.SeedSequence(0), "cpu")
    learner.fit(dataset.pool[:20], 0)  # batches of 7, 7 and 6, four times each
    assert sorted(shape[0] for shape in recorded) == [6, 7]


def test_recording_draws_nothing_from_the_random_generators(recorded):
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5)).train()
    images = torch.rand(3, 1, 8, 8)
    torch.manual_seed(0)
    expected = trunk(images)
    torch.manual_seed(0)
    torch.testing.assert_close(RecordedTrunk(trunk)(images), expected, rtol=0, atol=0)


def test_parameters_are_those_of_the_network(recorded):
    network = small_cnn()
    with in_steps(network, cuda_graphs=True) as stepped:
        parameters = [id(parameter) for parameter in stepped.parameters()]
    assert parameters == [id(parameter) for parameter in network.parameters()]
    assert not any(isinstance(module, RecordedTrunk) for module in network.modules())


def test_recordings_end_with_the_round(recorded):
    network = small_cnn()
    with in_steps(network, cuda_graphs=True) as stepped:
        stepped.features(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
        recording = weakref.ref(next(iter(stepped.trunk.recordings.values())))
        del stepped
    assert recording() is None


class ReplacesItsBuffer(nn.Module):
    """A module that makes a new tensor of its running mean in each pass."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images):
        self.mean = 0.9 * self.mean + 0.1 * images.mean()
        return self.scale * (images - self.mean)


def test_network_that_replaces_its_buffers_is_refused(recorded):
    with pytest.raises(BenchError, match=r"--cuda-graphs: .* it replaces a buffer by a new tensor"):
        RecordedTrunk(ReplacesItsBuffer())(torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("kind", [RuntimeError, UserCodeError])  # the latter if the module is the user's own
def test_network_that_cannot_be_recorded_is_a_users_mistake(monkeypatch, kind):
    def fail(*args, **kwargs):
        raise kind("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    trunk = RecordedTrunk(nn.Conv2d(1, 2, 3))
    with pytest.raises(BenchError, match=r"--cuda-graphs: .* when stream is capturing; leave the flag out") as caught:
        trunk(torch.zeros(1, 1, 8, 8))
    assert "\n" not in str(caught.value)


def test_exhausted_memory_stays_what_it_is(monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    with pytest.raises(torch.OutOfMemoryError), autocast("cpu", "bfloat16"):
        RecordedTrunk(nn.Conv2d(1, 2, 3))(torch.zeros(1, 1, 8, 8))


def test_flag_is_refused_where_the_runs_use_no_gpu():
    with pytest.raises(BenchError, match="--cuda-graphs: these runs use cpu: leave it out"):
        resolved(Config(cuda_graphs=True, device="cpu"))

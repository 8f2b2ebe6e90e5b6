"""The finetune regime: it learns, repeats itself to the last bit, and moves images as it says."""

import numpy as np
import pytest
import torch

from egal_bench import model
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_bench.finetune import FinetuneLearner, _augment
from egal_shards import pack
from egal_shards.sources import phantom


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("finetune") / "set"
    pack(phantom(samples=150, size=32, roi_area=0.08), path, size=32, progress=False)
    return open_dataset(path)


def learner(dataset, steps: int = 30) -> FinetuneLearner:
    network = model.build("small-cnn", 3, image_channels=1, image_size=32, size=None, seed=0)
    settings = Config(steps=steps, learning_rate=5e-3, batch_size=16)
    return FinetuneLearner(dataset, network, settings, np.random.SeedSequence(0).spawn(4)[3], "cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_fits_what_it_was_shown(dataset):
    made, labelled = learner(dataset, steps=180), dataset.pool[:40]
    before = (made.score(labelled, overlap=False).logits.argmax(1) == dataset.labels[labelled]).mean()
    made.fit(labelled, 0)
    after = (made.score(labelled, overlap=False).logits.argmax(1) == dataset.labels[labelled]).mean()
    assert before < 0.7
    assert after > 0.85


def test_a_round_depends_on_its_labels_and_number_not_on_what_was_fitted_before(dataset):
    fresh, used = learner(dataset), learner(dataset)
    used.fit(dataset.pool[20:60], 0)
    for made in (fresh, used):
        made.fit(dataset.pool[:30], 1)
    scores = [made.score(dataset.test, overlap=True) for made in (fresh, used)]
    np.testing.assert_array_equal(scores[0].logits, scores[1].logits)
    np.testing.assert_array_equal(scores[0].overlap.intersection, scores[1].overlap.intersection)
    used.fit(dataset.pool[:30], 2)
    assert not np.array_equal(used.score(dataset.test, overlap=False).logits, scores[0].logits)


def test_both_ways_to_score_agree_whatever_the_order(dataset):
    made = learner(dataset)
    made.fit(dataset.pool[:30], 0)
    full, cheap = made.score(dataset.test, overlap=True), made.score(dataset.test[::-1], overlap=False)
    np.testing.assert_allclose(full.logits, cheap.logits[::-1], atol=1e-4)
    np.testing.assert_allclose(full.entropy, cheap.entropy[::-1], atol=1e-4)


def test_divergence_is_reported_with_its_remedy(dataset):
    made = learner(dataset)
    with torch.no_grad():
        made.initial["head.weight"].fill_(float("inf"))
    with pytest.raises(BenchError, match="diverged in round 3: lower --learning-rate"):
        made.fit(dataset.pool[:20], 3)


def test_augmentation_only_flips_and_shifts():
    """An image that numbers its pixels: each output is the input moved by at most 1/16 of its side, or its mirror."""
    numbered = torch.arange(1, 257).view(1, 1, 16, 16)
    moved = _augment(numbered.expand(64, -1, -1, -1), np.random.default_rng(0))
    grid = numbered[0, 0].numpy()
    seen = set()
    for image in moved[:, 0].numpy():
        candidates = {}
        for flip in (False, True):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    padded = np.pad(grid, 1)[1 + dy : 17 + dy, 1 + dx : 17 + dx]
                    candidates[flip, dy, dx] = padded[:, ::-1] if flip else padded
        matches = [key for key, value in candidates.items() if np.array_equal(value, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 12  # of 18

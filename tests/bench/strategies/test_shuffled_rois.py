"""The control `roi=shuffled`: samples are scored with the ROIs of others in both regimes, and bought with their own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.learners.frozen import FrozenLearner
from egal_bench.models import network as networks
from egal_bench.runs.purchase import Buyer
from egal_bench.scoring import pool_pass
from egal_bench.scoring.features import extract, open_features
from egal_bench.scoring.scores import Scores
from egal_bench.strategies import Overlap, find
from egal_kernels import acquire, pack_roi
from egal_shards import pack
from egal_shards.sources import phantom

SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("shuffled") / "set"
    pack(phantom(samples=75, size=SIZE), path, size=SIZE, progress=False)
    return open_dataset(path)


@pytest.fixture(scope="module")
def network(dataset):
    return networks.build("small-cnn", dataset.classes, image_channels=1, image_size=SIZE, size=None, seed=5).eval()


@pytest.fixture(scope="module")
def shuffled(dataset):
    """Return positions and the positions whose ROIs they are scored with."""
    positions = np.random.default_rng(0).permutation(75)[:50]
    return positions, np.random.default_rng(1).permutation(positions)


def by_hand(dataset, network, positions, roi_of, config):
    """Return the Acquisition of each image with the unpacked ROI of another sample."""
    images = torch.from_numpy(np.stack([dataset.shards[int(i)].image for i in positions]))
    masks = torch.from_numpy(np.stack([dataset.shards[int(i)].roi for i in roi_of]))
    with torch.inference_mode():
        maps = network.features(images)
        return acquire(maps, network.head.weight, network.head.bias, pack_roi(masks), threshold=config.threshold,
                       convention=config.explain_convention)  # fmt: skip


def assert_same_overlap(overlap, acquisition, soft):
    dice = acquisition.soft_dice() if soft else acquisition.dice()
    np.testing.assert_allclose(overlap.dice, dice.numpy(), atol=2e-3)
    np.testing.assert_array_equal(overlap.roi_area, acquisition.roi_area.numpy())


@pytest.mark.parametrize("overlap", ["thresholded", "soft"])
def test_the_pass_scores_images_with_the_rois_of_others(dataset, network, shuffled, overlap):
    config = Config.model_validate({"overlap": overlap})
    scores = pool_pass.score(network, dataset, shuffled[0], config, "cpu", needs={"roi"}, roi_of=shuffled[1], batch=16)
    assert_same_overlap(scores.overlap, by_hand(dataset, network, *shuffled, config), overlap == "soft")


def test_a_stored_pass_is_not_taken_for_one_with_other_rois(dataset, network, shuffled, tmp_path):
    config, positions = Config(), shuffled[0]

    def areas(roi_of):
        scores = pool_pass.score(
            network, dataset, positions, config, "cpu", needs={"roi"}, roi_of=roi_of, folder=tmp_path
        )
        return scores.overlap.roi_area.tolist()

    true = areas(None)
    assert areas(shuffled[1]) != true
    assert sorted(areas(shuffled[1])) == sorted(true)
    assert areas(None) == true


def test_an_interrupted_pass_continues_with_the_rois_that_are_missing(
    dataset, network, shuffled, tmp_path, monkeypatch
):
    positions, roi_of = shuffled
    arguments = {"needs": {"roi"}, "roi_of": roi_of, "batch": 16}
    direct = pool_pass.score(network, dataset, positions, Config(), "cpu", **arguments)
    calls, check = [], pool_pass.check_finite

    def interrupted(*check_arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        check(*check_arguments)

    monkeypatch.setattr(pool_pass, "check_finite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool_pass.score(network, dataset, positions, Config(), "cpu", folder=tmp_path, **arguments)
    resumed = pool_pass.score(network, dataset, positions, Config(), "cpu", folder=tmp_path, **arguments)
    assert len(calls) == 3 + 2  # 16 + 16 rows were stored, 16 + 2 were missing
    np.testing.assert_array_equal(resumed.overlap.dice, direct.overlap.dice)


@pytest.mark.parametrize("overlap", ["thresholded", "soft"])
def test_the_frozen_learner_scores_with_the_rois_of_others(dataset, network, shuffled, tmp_path, overlap):
    extract(dataset, network, tmp_path / "features", "cpu")
    config = Config.model_validate({"regime": "frozen", "overlap": overlap})
    learner = FrozenLearner(dataset, open_features(tmp_path / "features"), config)
    learner.weight, learner.bias = (p.detach().numpy() for p in (network.head.weight, network.head.bias))
    scores = learner.score(shuffled[0], {"roi"}, shuffled[1])
    np.testing.assert_array_equal(scores.overlap.roi_area, [dataset.shards[int(i)].roi.sum() for i in shuffled[1]])
    assert_same_overlap(scores.overlap, by_hand(dataset, network, *shuffled, config), overlap == "soft")


class Recorder:
    """A learner that records how it is asked to score; the area of an ROI is the position of its owner."""

    def __init__(self):
        self.calls = []

    def score(self, positions, needs, roi_of=None):
        self.calls.append((positions, set(needs), roi_of))
        owners = positions if roi_of is None else roi_of
        overlap = Overlap(owners, owners, owners, np.where(owners % 3 == 0, np.nan, owners / 100))
        return Scores(np.zeros((len(positions), 2)), np.zeros(len(positions)), overlap)


def buyer(specification, keys):
    """Return (buyer, learner) of a pool of 40 samples, every third without ROI."""
    dataset = SimpleNamespace(
        pool=np.arange(40), keys=keys, labels=np.arange(40) % 2, groups=np.full(40, ""),
        has_roi=np.arange(40) % 3 != 0, shards=SimpleNamespace(classes=("a", "b")),
    )  # fmt: skip
    config, learner = Config.model_validate({"budget": 5}), Recorder()
    streams = dict(zip(("pool", "query", "ties"), np.random.SeedSequence(0).spawn(3), strict=True))
    return Buyer(dataset, find(specification, config), learner, config, streams), learner


@pytest.fixture
def keys():
    return np.array([f"k{i:02}" for i in range(40)])


@pytest.mark.parametrize("specification", ["egal(roi=shuffled)", "misalignment(roi=shuffled)"])
def test_rois_are_permuted_among_samples_that_have_one(specification, keys):
    bought_by, learner = buyer(specification, keys)
    labelled = np.array([2, 3, 11])
    bought_by.buy(labelled, 1)
    positions, needs, roi_of = learner.calls[0]
    without = positions % 3 == 0
    assert needs == {"roi", "shuffled-roi"}
    assert roi_of[without].tolist() == positions[without].tolist()
    assert sorted(roi_of) == sorted(positions)
    assert not np.isin(roi_of, labelled).any()
    assert (roi_of[~without] != positions[~without]).sum() > 15


def test_bought_samples_are_recorded_with_their_own_rois(keys):
    bought_by, learner = buyer("misalignment(roi=shuffled)", keys)
    purchase = bought_by.buy(np.array([2, 3, 11]), 1)
    assert purchase.overlap.roi_area.tolist() == purchase.positions.tolist()
    positions, _, roi_of = learner.calls[0]
    owner = dict(zip(positions.tolist(), roi_of.tolist(), strict=True))
    expected = [1 - owner[int(p)] / 100 for p in purchase.positions if owner[int(p)] % 3]
    scores = [s for p, s in zip(purchase.positions, purchase.scores, strict=True) if owner[int(p)] % 3]
    np.testing.assert_allclose(scores, expected)


def test_each_round_permutes_anew_and_a_resumed_round_the_same(keys):
    first, learner = buyer("egal(roi=shuffled)", keys)
    labelled = np.array([2, 3, 11])
    first.buy(labelled, 1)
    first.buy(labelled, 2)
    again, other = buyer("egal(roi=shuffled)", keys)
    again.buy(labelled, 2)
    rounds = [roi_of.tolist() for _, _, roi_of in learner.calls if roi_of is not None]
    assert rounds[0] != rounds[1]
    assert other.calls[0][2].tolist() == rounds[1]


def test_true_rois_are_scored_once_and_without_a_permutation(keys):
    bought_by, learner = buyer("egal", keys)
    bought_by.buy(np.array([2, 3, 11]), 1)
    assert [roi_of for _, _, roi_of in learner.calls] == [None]

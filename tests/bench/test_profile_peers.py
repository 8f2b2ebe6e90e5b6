"""The peers of `profile` compute what we do, by their own code; one that does not is refused, not timed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from egal_bench import model, profile_peers
from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.profile import profile
from egal_bench.profile_peers import LIBRARIES, agreeing, peers
from egal_bench.profile_report import as_json, draw_stages, stage_table
from egal_kernels import PackedRoi
from egal_shards import pack
from egal_shards.sources import phantom

CONFIG = Config(backbone="small-cnn", precision="float32", device="cpu")
INSTALLED = pytest.mark.skipif(
    any(profile_peers.importlib.util.find_spec(one.module) is None for one in LIBRARIES.values()),
    reason="needs the peers: pip install 'egal-bench[peers]'",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "set"
    pack(phantom(samples=60, size=32, roi_area=0.08), path, size=32, progress=False)
    return path


@pytest.fixture(scope="module")
def batch(shards):
    """(network, images, ROIs) of 24 samples."""
    dataset = open_dataset(shards)
    network = model.build("small-cnn", dataset.classes, image_channels=1, image_size=32, size=None, seed=1).eval()
    (one,) = dataset.shards.batches(dataset.pool[:24], 24, "cpu")
    return network, one.images, PackedRoi(one.roi, 32)


@INSTALLED
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_peer_gives_the_dice_of_acquire_in_its_own_convention(batch, precision):
    for name, peer in peers(*batch, CONFIG.model_copy(update={"precision": precision})).items():
        assert peer.why == "", name
        assert peer.difference < (5e-3 if LIBRARIES[name].same and precision == "bfloat16" else 1e-4), name
        dice = peer.run()
        assert dice.shape == (24,), name
        assert dice.max() > 0.1, name


@INSTALLED
def test_the_conventions_are_not_one_and_the_same(batch):
    """Else agreement in each peer's own would say little."""
    dice = {name: peer.run() for name, peer in peers(*batch, CONFIG).items()}
    assert float((dice["torch-cam"] - dice["pytorch-grad-cam"]).abs().max()) > 1e-3


@INSTALLED
def test_monai_counts_with_its_own_dice_helper(batch, monkeypatch):
    from monai.metrics import DiceHelper

    called = []
    own = DiceHelper.__call__
    monkeypatch.setattr(DiceHelper, "__call__", lambda self, *given: called.append(1) or own(self, *given))
    found = peers(*batch, CONFIG)
    assert called == [1]
    found["MONAI GradCAM, DiceHelper"].run()
    assert called == [1, 1]


@INSTALLED
@pytest.mark.parametrize("wrong", [{"convention": "captum"}, {"map_of": "inverted"}, {"dice": "jaccard"}])
def test_a_wrong_peer_is_shown_as_such_and_never_timed(shards, tmp_path, monkeypatch, wrong):
    right = LIBRARIES["pytorch-grad-cam"]

    def inverted(whole, predicted):
        cam = right.map_of(whole, predicted)
        return lambda inputs: 1 - cam(inputs)

    def jaccard(hit, mask):
        return (hit & mask).sum((1, 2)) / (hit | mask).sum((1, 2))

    name, value = next(iter(wrong.items()))
    broken = replace(right, **{name: {"inverted": inverted, "jaccard": jaccard}.get(value, value)})
    monkeypatch.setattr(profile_peers, "LIBRARIES", {"right": right, "wrong": broken})
    config = CONFIG.model_copy(update={"shards": (str(shards),)})
    found = profile(config, tmp_path, batch=24, samples=24, rounds=2, with_peers=True, trace=None)
    assert [row["stage"] for row in found.rows if row["benchmark"] == "profile: peers"] == ["ours", "right"]
    assert list(as_json(found)["peers"]) == ["right"]
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as captured:
        console.print(stage_table(found))
    assert re.search(r"wrong +not timed", captured.get())
    assert "wrong: differs from ours by a mean |ΔDice| of 0." in captured.get()
    draw_stages(found, tmp_path / "drawn.png")


def test_a_missing_peer_says_how_to_install_it(batch, monkeypatch):
    monkeypatch.setattr(
        profile_peers, "LIBRARIES", {"absent": replace(LIBRARIES["torch-cam"], module="no_such_library")}
    )
    assert peers(*batch, CONFIG)["absent"].why == "not installed: pip install 'egal-bench[peers]'"


OURS = torch.tensor([0.5, 0.25, np.nan, 0.0])
ALL = torch.ones(4, dtype=torch.bool)


def test_agreement_is_the_mean_difference_over_the_samples_that_both_can_tell():
    theirs = torch.tensor([0.5, 0.25 + 0.03, 0.7, 0.9])
    peer = agreeing(lambda: theirs, OURS, torch.tensor([True, True, True, False]), tolerance=0.02)
    assert peer.why == ""
    assert peer.difference == pytest.approx(0.03 / 2, abs=1e-6)
    assert "0.015" in agreeing(lambda: theirs, OURS, torch.tensor([True, True, True, False]), tolerance=0.01).why


def test_a_peer_without_a_number_does_not_agree():
    theirs = torch.tensor([0.5, np.nan, 0.7, 0.0])
    assert agreeing(lambda: theirs, OURS, ALL, tolerance=0.02).why


def test_where_no_map_meets_an_roi_nothing_is_said_to_agree():
    zeros = torch.tensor([0.0, 0.0, np.nan])
    assert "nothing to compare" in agreeing(lambda: torch.zeros(3), zeros, ALL[:3], tolerance=0.02).why


def test_a_peer_that_fails_is_not_timed_and_says_why(batch, monkeypatch):
    def broken(whole, predicted):
        def run(inputs):
            raise torch.OutOfMemoryError("out of memory\nand more")

        return run

    monkeypatch.setattr(
        profile_peers, "LIBRARIES", {"broken": replace(LIBRARIES["torch-cam"], module="torch", map_of=broken)}
    )
    assert peers(*batch, CONFIG)["broken"].why == "failed with OutOfMemoryError: out of memory"

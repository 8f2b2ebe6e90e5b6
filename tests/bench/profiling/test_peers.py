"""The peers of `profile` compute the same Dice by their own code; one that does not is refused, not timed."""

import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from egal_bench.profiling import peers as module
from egal_bench.profiling.peers import LIBRARIES, checked_peer, peers
from egal_bench.profiling.profile import profile
from egal_bench.profiling.report import as_json, draw_stages, stage_table
from egal_kernels import PackedRoi

needs_peers = pytest.mark.skipif(
    any(importlib.util.find_spec(library.module) is None for library in LIBRARIES.values()),
    reason="needs the peers: pip install 'egal-bench[peers]'",
)


@pytest.fixture
def batch(dataset, network):
    """The network, and the images and ROIs of 24 samples."""
    (batch,) = dataset.shards.batches(dataset.pool[:24], 24, "cpu")
    return network, batch.images, PackedRoi(batch.roi, 32)


@needs_peers
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_peer_gives_the_dice_of_acquire_in_its_convention(batch, config, precision):
    for name, peer in peers(*batch, config.model_copy(update={"precision": precision})).items():
        assert peer.problem == "", name
        bound = 5e-3 if LIBRARIES[name].same_precision and precision == "bfloat16" else 1e-4
        assert peer.difference < bound, name
        dice = peer.run()
        assert dice.shape == (24,), name
        assert dice.max() > 0.1, name


@needs_peers
def test_the_conventions_of_two_peers_give_different_dice(batch, config):
    """Otherwise, agreement in each peer's own convention would say little."""
    dice = {name: peer.run() for name, peer in peers(*batch, config).items()}
    assert float((dice["torch-cam"] - dice["pytorch-grad-cam"]).abs().max()) > 1e-3


@needs_peers
def test_monai_counts_with_its_own_dice_helper(batch, config, monkeypatch):
    from monai.metrics import DiceHelper

    calls = []
    call = DiceHelper.__call__
    monkeypatch.setattr(DiceHelper, "__call__", lambda self, *words: calls.append(1) or call(self, *words))
    by_name = peers(*batch, config)
    assert calls == [1]
    by_name["MONAI GradCAM, DiceHelper"].run()
    assert calls == [1, 1]


RIGHT = LIBRARIES["pytorch-grad-cam"]


def inverted(model, predicted):
    cam = RIGHT.map_of(model, predicted)
    return lambda inputs: 1 - cam(inputs)


def jaccard(hit, mask):
    return (hit & mask).sum((1, 2)) / (hit | mask).sum((1, 2))


@needs_peers
@pytest.mark.parametrize("wrong", [{"convention": "captum"}, {"map_of": inverted}, {"dice": jaccard}], ids=list)
def test_a_peer_that_disagrees_is_named_and_not_timed(config, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(module, "LIBRARIES", {"right": RIGHT, "wrong": replace(RIGHT, **wrong)})
    result = profile(config, tmp_path, batch=24, samples=24, rounds=2, with_peers=True, trace=None)
    assert [row["stage"] for row in result.rows if row["benchmark"] == "profile: peers"] == ["ours", "right"]
    assert list(as_json(result)["peers"]) == ["right"]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(stage_table(result))
    assert re.search(r"wrong +not timed", captured.get())
    assert "wrong: its Dice differs from egal-bench's by 0." in captured.get()
    draw_stages(result, tmp_path / "drawn.png")


def test_a_missing_peer_says_how_to_install_it(batch, config):
    absent = replace(RIGHT, module="no_such_library")
    problem = peers(*batch, config, {"absent": absent})["absent"].problem
    assert problem == "not installed: pip install 'egal-bench[peers]'"


def test_a_peer_that_fails_is_not_timed_and_says_why(batch, config):
    def failing(model, predicted):
        def run(inputs):
            raise torch.OutOfMemoryError("out of memory\nand more")

        return run

    broken = replace(RIGHT, module="torch", map_of=failing)
    problem = peers(*batch, config, {"broken": broken})["broken"].problem
    assert problem == "failed with OutOfMemoryError: out of memory"


EXPECTED = torch.tensor([0.5, 0.25, np.nan, 0.0])
ALL = torch.ones(4, dtype=torch.bool)


def test_the_difference_is_averaged_over_comparable_samples():
    dice = torch.tensor([0.5, 0.25 + 0.03, 0.7, 0.9])
    comparable = torch.tensor([True, True, True, False])
    peer = checked_peer(lambda: dice, EXPECTED, comparable, tolerance=0.02)
    assert peer.problem == ""
    assert peer.difference == pytest.approx(0.03 / 2, abs=1e-6)
    assert "0.015" in checked_peer(lambda: dice, EXPECTED, comparable, tolerance=0.01).problem


def test_a_peer_whose_dice_is_nan_does_not_agree():
    dice = torch.tensor([0.5, np.nan, 0.7, 0.0])
    assert checked_peer(lambda: dice, EXPECTED, ALL, tolerance=0.02).problem


def test_nothing_is_compared_where_no_map_meets_an_roi():
    zeros = torch.tensor([0.0, 0.0, np.nan])
    assert "nothing to compare" in checked_peer(lambda: torch.zeros(3), zeros, ALL[:3], tolerance=0.02).problem

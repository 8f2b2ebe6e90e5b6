"""The network of a query: found, loaded without unpickling, and checked against the images."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from bench.querying.conftest import SIZE, write_network
from egal_bench.errors import BenchError
from egal_bench.models.saving import load_network
from egal_bench.querying.network_place import network_file
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom


def test_a_loaded_network_computes_what_the_saved_one_did(home):
    saved = load_network(home / "network.safetensors")
    state = safetensors.torch.load_file(home / "network.safetensors")
    assert not saved.network.training
    assert {name: value.tolist() for name, value in saved.network.state_dict().items()} == {
        name: value.tolist() for name, value in state.items()
    }
    assert (saved.classes, saved.image_size) == (ShardSet(home / "north").classes, SIZE)


def rewritten(home, path, **fields):
    """Write the network with other fields in its description."""
    with safetensors.safe_open(home / "network.safetensors", "pt") as file:
        described = json.loads(file.metadata()["egal_bench"]) | fields
    state = safetensors.torch.load_file(home / "network.safetensors")
    safetensors.torch.save_file(state, path, {"egal_bench": json.dumps(described)})
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "os:getcwd"}, "its trunk is your own code, 'os:getcwd'; give --backbone os:getcwd"),
        (
            {"classes": ["a", "b"]},
            r"its tensors are not those of small-cnn for 1 channel and 2 classes \(.* has the shape \(3, .*not \(2, ",
        ),
        (
            {"channels": 3},
            r"not those of small-cnn for 3 channels .* has the shape \(16, 1, 5, 5\), not \(16, 3, 5, 5\)\); train",
        ),
        ({"classes": []}, "its metadata do not describe one"),
        ({"channels": 2}, "its metadata do not describe one"),
        ({"image_size": 10**9}, "its metadata do not describe one"),
        ({"size": 10**9}, "an input of 1000000000 pixels"),
        ({"threshold": "x"}, "its metadata do not describe one"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(home, tmp_path, fields, message):
    with pytest.raises(BenchError, match=message):
        load_network(rewritten(home, tmp_path / "n.safetensors", **fields))


def test_files_of_other_kinds_are_refused_and_never_unpickled(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    for name in ("pickle", "plain"):
        with pytest.raises(BenchError, match="is no network that `compare --save-network` has written"):
            load_network(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": SIZE, "channels": 3},
            "have 3 channels, and the network was trained on 1 channel: .*--channels 1",
        ),
        ({"size": 40}, f"have 40 pixels per side, and the network was trained on {SIZE}: .*--size {SIZE}"),
    ],
)
def test_images_that_the_network_cannot_score_are_refused(home, tmp_path, settings, message):
    pack(phantom(samples=60, size=40), tmp_path / "set", progress=False, **settings)
    with pytest.raises(BenchError, match=message):
        load_network(home / "network.safetensors").check_fits(ShardSet(tmp_path / "set"))


def test_other_classes_are_refused_by_name(home, tmp_path):
    source = phantom(samples=60, size=SIZE)
    pack(source.of_classes(drop=source.classes[:1]), tmp_path / "set", size=SIZE, progress=False)
    with pytest.raises(BenchError, match=f"the network was trained on '{source.classes[0]}', "):
        load_network(home / "network.safetensors").check_fits(ShardSet(tmp_path / "set"))


def test_a_network_with_an_input_size_of_its_own_scores_other_images(home, tmp_path):
    write_network(home / "north", tmp_path / "n.safetensors", size=48)
    pack(phantom(samples=60, size=40), tmp_path / "set", size=40, progress=False)
    load_network(tmp_path / "n.safetensors").check_fits(ShardSet(tmp_path / "set"))


def test_a_folder_must_hold_exactly_one_network(home, tmp_path):
    with pytest.raises(BenchError, match=r"holds no network.safetensors; `egal-bench compare --save-network` keeps"):
        network_file(tmp_path)
    for run in ("a", "b"):
        (tmp_path / "networks" / run).mkdir(parents=True)
        shutil.copy(home / "network.safetensors", tmp_path / "networks" / run)
        if run == "a":
            assert network_file(tmp_path) == tmp_path / "networks/a/network.safetensors"
    with pytest.raises(BenchError, match=r"holds 2 networks; name one of them: .*/a/network.safetensors, .*/b/network"):
        network_file(tmp_path)
    with pytest.raises(BenchError, match=r"--network .*absent: does not exist"):
        network_file(tmp_path / "absent")

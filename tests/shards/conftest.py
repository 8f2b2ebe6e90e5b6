"""Fixtures that the tests of shards share."""

import os
import sys

import pytest

from egal_shards import ShardSet, pack, remote
from shards.shard_sets import source as tiny_source


@pytest.fixture
def pack_set(tmp_path):
    """A function that packs a source into tmp_path/name, at 16 pixels unless told otherwise, and opens the set."""

    def pack_set(source, name="set", **settings):
        pack(source, tmp_path / name, **{"size": 16, "progress": False, **settings})
        return ShardSet(tmp_path / name)

    return pack_set


@pytest.fixture
def child_environment():
    """Environment variables with which a child process can import the helpers of the tests."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """The folder of a set of 24 samples in more than four shards, which no test changes."""
    folder = tmp_path_factory.mktemp("many_shards") / "set"
    pack(tiny_source(24), folder, size=8, shard_mb=0.014, progress=False)
    assert len(list(folder.glob("*.tar"))) > 4
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache of remote sets, with short pauses between attempts."""
    monkeypatch.setenv("EGAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_DELAY", 0.01)
    monkeypatch.setattr(remote, "_AHEAD", 0)  # else threads request shards in any order
    return tmp_path / "cache"

"""A set that is read shard by shard holds the same rows and samples as one that is read whole."""

import pickle

import numpy as np
import pytest

from egal_shards import ShardError, ShardSet, pack
from egal_shards.index import Index
from egal_shards.sources import phantom
from shards.fault_server import serving


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A set of 60 samples in several shards."""
    path = tmp_path_factory.mktemp("set") / "set"
    pack(phantom(samples=60, size=32), path, size=32, progress=False, shard_mb=0.03)
    return path


@pytest.fixture(params=[1, 7, 4096])
def rows_per_batch(request, monkeypatch):
    """The number of rows that are read of the index at a time."""
    monkeypatch.setattr("egal_shards.index._BATCH", request.param)


def test_rows_by_shard_are_those_of_the_whole_index(packed, rows_per_batch):
    whole, parts = ShardSet(packed), list(ShardSet.without_index(packed).index_by_shard())
    assert [len(part) for part in parts] == [shard.samples for shard in whole.manifest.shards]
    assert len(parts) > 3
    assert Index.joined(parts).table.equals(whole.rows.table)


def test_chosen_rows_are_the_samples_of_a_set(packed):
    whole, positions = ShardSet(packed), np.array([41, 3, 59, 0])
    chosen = ShardSet.without_index(packed).with_rows(whole.rows.take(positions))
    assert len(chosen) == 4
    for i, position in enumerate(positions.tolist()):
        assert chosen[i].key == whole[position].key
        np.testing.assert_array_equal(chosen[i].image, whole[position].image)
        np.testing.assert_array_equal(chosen[i].roi, whole[position].roi)
    batches = list(chosen.batches(np.arange(4), 3))
    assert [key for batch in batches for key in batch.keys] == [whole[i].key for i in positions.tolist()]


def test_a_set_without_rows_has_no_samples(packed):
    assert len(ShardSet.without_index(packed)) == 0


def test_pickled_rows_of_a_shard_leave_out_those_of_others(packed):
    parts = list(ShardSet.without_index(packed).index_by_shard())
    again = pickle.loads(pickle.dumps(parts[1]))  # noqa: S301 - its own bytes
    assert again.table.equals(parts[1].table)
    assert len(pickle.dumps(parts[1])) < len(pickle.dumps(ShardSet(packed).rows)) / 2


def test_missing_shards_are_found_only_when_they_are_read(packed, tmp_path):
    for file in packed.iterdir():
        if file.name != "shard-000001.tar":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    shards = ShardSet.without_index(tmp_path)
    parts = list(shards.index_by_shard())
    assert shards.with_rows(parts[0])[0].key == ShardSet(packed)[0].key
    with pytest.raises(ShardError, match=r"shard-000001.tar: No such file"):
        shards.with_rows(parts[1])


def test_another_manifest_than_the_expected_one_is_refused(packed):
    digest = ShardSet(packed).manifest.sha256
    assert ShardSet.without_index(packed, digest).manifest.sha256 == digest
    with pytest.raises(ShardError, match="has changed since another process opened it"):
        ShardSet.without_index(packed, "0" * 64)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_index_is_refused_before_its_first_row(packed, tmp_path, damage):
    for name in ("manifest.json", "index.parquet"):
        content = bytearray((packed / name).read_bytes())
        if name == "index.parquet":
            if damage == "flipped":
                content[len(content) // 2] ^= 1
            else:
                del content[-10:]
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ShardError, match=r"index.parquet: .*(digest|size).* in the manifest"):
        next(ShardSet.without_index(tmp_path).index_by_shard())


def test_a_remote_set_is_read_by_shard_and_fetches_only_what_is_read(many_shards, cache):
    with serving(many_shards) as (url, script):
        shards, local = ShardSet.without_index(url), ShardSet(many_shards)
        parts = list(shards.index_by_shard())
        assert Index.joined(parts).table.equals(local.rows.table)
        last = shards.with_rows(parts[-1])
        assert last[len(last) - 1].key == local[len(local) - 1].key
    assert [name for name, _ in script.log] == ["manifest.json", "index.parquet", local.manifest.shards[-1].file]

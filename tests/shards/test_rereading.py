"""A second reading compares fingerprints, and returns the same samples or an error."""

import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_shards import ShardError, ShardSet, reader
from egal_shards.rereading import Checked, _absorb
from shards.shard_sets import raw, source

ORDER = [11, 0, 1, 2, 2, 5, 3, 10, 4, 9, 8, 7, 6]
KEY = np.random.default_rng(5).integers(0, 2**64, 513, np.uint64) | np.uint64(1)


@pytest.fixture
def packed(pack_set):
    """A function that packs twelve samples and opens the set."""
    return lambda colour=False, **settings: pack_set(source(load=lambda i: raw(i, colour=colour)), **settings)


def read(shards, order=ORDER, size=3):
    return [
        (key, image.numpy().tobytes(), words.numpy().tobytes())
        for batch in shards.batches(order, size)
        for key, image, words in zip(batch.keys, batch.images, batch.roi, strict=True)
    ]


def by_hand(state, data):
    """Return the fingerprint, computed with integers of Python."""
    factor, lanes = int(KEY[0]), [int(lane) for lane in KEY[1:]]
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) // 8 * 8, 8)]
    for begin in range(0, len(words), 512):
        added = [(word + lane) % 2**64 for word, lane in zip(words[begin : begin + 512], lanes, strict=False)]
        state = (state * factor + sum(word % 2**32 * (word >> 32) for word in added)) % 2**64
    return (state * factor + int.from_bytes(data[len(words) * 8 :], "big")) % 2**64


@given(st.integers(0, 2**64 - 1), st.integers(0, 13_000), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_the_fingerprint_follows_its_formula(state, size, seed):
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    assert int(_absorb(np.uint64(state), data, KEY)) == by_hand(state, data.tobytes())


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_different_contents_have_different_fingerprints(data):
    size = data.draw(st.integers(1, 9000))
    original = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, size, np.uint8)
    other = original.copy()
    kind = data.draw(st.sampled_from(["bit", "word", "rotate", "zero"]))
    at = data.draw(st.integers(0, size - 1))
    if kind == "bit":
        other[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "word":
        other[at : at + 8] = data.draw(st.integers(0, 255))
    elif kind == "rotate":
        other = np.roll(original, at)
    else:
        other[at:] = 0
    alike = _absorb(np.uint64(0), original, KEY) == _absorb(np.uint64(0), other, KEY)
    assert alike == np.array_equal(original, other)


@pytest.mark.parametrize(
    "form", [{"size": 8}, {"size": 9, "channels": 3, "colour": True}, {"size": 37}, {"size": 16, "shard_mb": 0.003}]
)
def test_a_second_reading_is_equal_without_decoding(tmp_path, packed, monkeypatch, form):
    shards = packed(**form)
    first = read(shards)
    assert first == [(sample.key, sample.image.tobytes(), words(sample)) for sample in map(shards.__getitem__, ORDER)]
    monkeypatch.setattr(reader, "decode_span", None)  # calling it would fail
    assert read(shards) == first
    assert read(shards, ORDER[::-1], 13) == first[::-1]


def words(sample):
    columns = np.pad(sample.roi.T, [(0, 0), (0, -len(sample.roi) % 32)])
    return np.packbits(columns, axis=1, bitorder="little").tobytes()


@pytest.mark.parametrize("member", ["image", "roi"])
def test_bytes_changed_after_the_first_reading_are_refused(tmp_path, packed, member):
    shards = packed(size=8)
    first = dict(zip(ORDER, read(shards), strict=True))
    path = tmp_path / "set" / "shard-000000.tar"
    for i in np.flatnonzero(shards.rows.roi_area):
        offset, size = shards.rows.offsets[i].reshape(3, 2)[["image", "roi"].index(member)]
        for at in range(offset + 128, offset + size, 3):
            flip(path, at)
            with pytest.raises(ShardError, match=f"{path.name}: sample s{i:03d}: .* do not match their digest"):
                read(shards, [i])
            flip(path, at)
        assert read(shards, [i]) == [first[i]]  # the byte is restored


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_samples_exchanged_after_reading_are_refused(tmp_path, packed):
    shards = packed(size=8)
    read(shards)
    path = tmp_path / "set" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    (a, size), (b, _) = shards.rows.offsets[[2, 5], :2].tolist()
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    path.write_bytes(data)
    for i in (2, 5):
        with pytest.raises(ShardError, match=f"sample s{i:03d}: .* do not match their digest"):
            read(shards, [i])


def test_a_file_cut_or_lost_during_reading_is_an_error(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(reader, "_RUN", 1)  # else the last sample would be read before the cut
    shards = packed(size=64, shard_mb=0.02)
    read(shards)
    path = tmp_path / "set" / shards.manifest.shards[-1].file
    last = len(shards) - 1
    batches = shards.batches([0] * 20 + [last], 1)
    next(batches)
    os.truncate(path, int(shards.rows.offsets[last, 0]) + 300)
    with pytest.raises(ShardError, match=f"{path.name}: sample s{last:03d}: .* do not match"):
        list(batches)
    path.unlink()
    with pytest.raises(ShardError, match=f"{path.name}: No such file"):
        read(shards, [0, last])


def test_a_sample_that_was_never_checked_does_not_match(tmp_path, packed):
    shards = packed(size=8)
    images, roi = np.ones((2, 1, 8, 8), np.uint8), np.ones((2, 8, 1), np.int32)
    checked = Checked(shards.rows.offsets)
    with shards.open_shard(0) as file:
        files = np.full(2, file.fileno())
        assert not checked.read(files, np.array([3, 4]), images, roi).any()
        checked.remember(4, shards[4].image, np.frombuffer(words(shards[4]), "<i4"))
        assert checked.read(files, np.array([3, 4]), images, roi).tolist() == [False, True]
        assert np.array_equal(images[1], shards[4].image)
        assert not checked.read(np.array([-1, -1]), np.array([4, 4]), images, roi).any()


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
def test_more_shards_than_may_be_open_are_read(tmp_path, packed, monkeypatch):
    shards = packed(size=8, shard_mb=0.003)
    assert len(shards.manifest.shards) == 12
    expected = read(shards, ORDER, 13)
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(reader, "_AT_ONCE", 5)
    monkeypatch.setattr(reader, "_OPEN", 3)
    assert read(ShardSet(tmp_path / "set"), ORDER, 13) == expected
    assert read(shards, ORDER, 13) == expected
    assert os.listdir("/proc/self/fd") == before

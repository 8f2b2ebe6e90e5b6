"""Batches: those of the indices, whatever threads read at a time, in memory that nobody else writes to."""

import threading

import numpy as np
import pytest
import torch

from egal_shards import ShardError, ShardSet, pack, reader, transfer
from shards.shard_sets import source

SAMPLE = 16 * 16 + 16 * 4  # bytes of pixels and ROI words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches") / "set"
    pack(source(), folder, size=16, shard_mb=0.005, progress=False)
    return folder


def test_batches_follow_the_indices(tmp_path):
    pack(source(), tmp_path / "set", size=16, channels=3, shard_mb=0.01, progress=False)
    shards = ShardSet(tmp_path / "set")
    wanted = [11, 0, 5, 5, 7]
    batches = list(shards.batches(wanted, 2))
    assert [len(batch.keys) for batch in batches] == [2, 2, 1]
    assert [key for batch in batches for key in batch.keys] == [f"s{i:03d}" for i in wanted]
    assert (batches[0].images.dtype, batches[0].roi.dtype) == (torch.uint8, torch.int32)
    assert (batches[0].has_roi.dtype, batches[0].labels.dtype) == (torch.bool, torch.int64)
    assert (batches[0].images.shape, batches[0].roi.shape) == ((2, 3, 16, 16), (2, 16, 1))
    for slot, i in enumerate(wanted):
        batch, at, sample = batches[slot // 2], slot % 2, shards[i]
        assert np.array_equal(batch.images[at].numpy(), sample.image)
        bits = np.unpackbits(batch.roi[at].numpy().view(np.uint8), axis=1, bitorder="little")
        assert np.array_equal(bits[:, :16].T, sample.roi)
        assert bool(batch.has_roi[at]) == sample.has_roi
        assert int(batch.labels[at]) == sample.label
    assert list(shards.batches([], 4)) == []
    assert list(shards.batches(np.array([], int), 4)) == []


def test_batches_left_early_leave_no_thread(folder):
    before = threading.active_count()
    batches = ShardSet(folder).batches(range(12), 1)
    next(batches)
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        ([0, 12], 2, r"0…12 are not all in 0…11"),
        ([-1, 3], 2, r"-1…3 are not all in"),
        ([0.0, 1.0], 2, "1-d integers, not float64"),
        ([True, False], 2, "1-d integers, not bool"),
        ([[0, 1]], 2, "1-d integers"),
        ([0], 0, "batch_size 0 is below 1"),
    ],
)
def test_bad_batches(folder, indices, size, message):
    with pytest.raises(ShardError, match=message):
        ShardSet(folder).batches(indices, size)


@pytest.mark.parametrize("run", [1, 2 * SAMPLE, 5 * SAMPLE, 1e9])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 10**9])
def test_batches_are_the_same_whatever_a_thread_reads_at_a_time(folder, monkeypatch, run, size):
    monkeypatch.setattr(reader, "_RUN", run)
    shards = ShardSet(folder)
    order = [3, 11, 0, 1, 2, 2, 5, 3, 10, 4, 9, 8, 7, 6, 0, 1, 1]
    for _ in range(2):  # by digest, by fingerprint
        batches = list(shards.batches(order, size))
        assert [len(batch.keys) for batch in batches] == [len(order[i : i + size]) for i in range(0, len(order), size)]
        assert [key for batch in batches for key in batch.keys] == [f"s{i:03d}" for i in order]
        samples = [shards[i] for i in order]
        assert np.array_equal(torch.cat([batch.images for batch in batches]), [one.image for one in samples])
        assert torch.cat([batch.labels for batch in batches]).tolist() == [one.label for one in samples]
        assert torch.cat([batch.has_roi for batch in batches]).tolist() == [one.has_roi for one in samples]
        for n, words in enumerate(torch.cat([batch.roi for batch in batches]).numpy()):
            bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
            assert np.array_equal(bits[:, :16].T, samples[n].roi)


def test_a_thread_reads_whole_batches_of_as_many_bytes_as_it_may(folder, monkeypatch):
    read = []
    monkeypatch.setattr(reader, "_RUN", 7 * SAMPLE)
    fill = ShardSet._fill
    monkeypatch.setattr(ShardSet, "_fill", lambda self, *args: (read.append(len(args[0])), fill(self, *args)))
    shards = ShardSet(folder)
    for size, lengths in ((1, [7, 5]), (3, [6, 6]), (4, [4, 4, 4]), (8, [8, 4])):
        read.clear()
        list(shards.batches(range(12), size))
        assert sorted(read, reverse=True) == lengths


def test_pictures_are_decoded_batch_by_batch(tmp_path, monkeypatch):
    read = []
    fill = ShardSet._fill
    monkeypatch.setattr(ShardSet, "_fill", lambda self, *args: (read.append(len(args[0])), fill(self, *args)))
    pack(source(), tmp_path / "set", size=16, image_format="png", progress=False)
    list(ShardSet(tmp_path / "set").batches(range(12), 5))
    assert sorted(read) == [2, 5, 5]


@pytest.mark.parametrize("run", [1, 1e9])
def test_a_batch_that_is_held_is_never_written_to_again(folder, monkeypatch, run):
    monkeypatch.setattr(reader, "_RUN", run)
    shards = ShardSet(folder)
    held, copies = [], []
    for _ in range(6):
        for i, batch in enumerate(shards.batches(range(12), 2)):
            if i == len(held) % 6:  # of each epoch another
                held.append(batch)
                copies.append((batch.images.clone(), batch.roi.clone()))
                break
    for batch, (images, roi) in zip(held, copies, strict=True):
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.roi, roi)


def test_memory_of_one_epoch_is_that_of_the_next_within_bounds(folder, monkeypatch):
    made = []
    aligned = transfer._aligned
    monkeypatch.setattr(transfer, "_aligned", lambda size: made.append(size) or aligned(size))
    shards = ShardSet(folder)

    def epoch(samples):
        made.clear()
        for batch in shards.batches(range(samples), 2):
            del batch
        return len(made)

    monkeypatch.setattr(reader, "_RUN", 1)
    assert 2 <= epoch(12) < 12  # of six batches' images and words
    assert epoch(12) == epoch(11) == 0  # the last batch is short
    monkeypatch.setattr(transfer, "_KEPT", 100)
    assert epoch(12) == 0
    assert epoch(12) > 0  # what the last but one left was more than may be kept

"""Batches follow the indices, whatever the size of runs, and their memory is not overwritten."""

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


def test_batches_follow_the_indices(pack_set):
    shards = pack_set(source(), channels=3, shard_mb=0.01)
    positions = [11, 0, 5, 5, 7]
    batches = list(shards.batches(positions, 2))
    assert [len(batch.keys) for batch in batches] == [2, 2, 1]
    assert [key for batch in batches for key in batch.keys] == [f"s{i:03d}" for i in positions]
    assert (batches[0].images.dtype, batches[0].roi.dtype) == (torch.uint8, torch.int32)
    assert (batches[0].has_roi.dtype, batches[0].labels.dtype) == (torch.bool, torch.int64)
    assert (batches[0].images.shape, batches[0].roi.shape) == ((2, 3, 16, 16), (2, 16, 1))
    for slot, i in enumerate(positions):
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
def test_bad_arguments_are_refused(folder, indices, size, message):
    with pytest.raises(ShardError, match=message):
        ShardSet(folder).batches(indices, size)


@pytest.mark.parametrize("run", [1, 2 * SAMPLE, 5 * SAMPLE, 1e9])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 10**9])
def test_batches_do_not_depend_on_the_size_of_runs(folder, monkeypatch, run, size):
    monkeypatch.setattr(reader, "_RUN", run)
    shards = ShardSet(folder)
    order = [3, 11, 0, 1, 2, 2, 5, 3, 10, 4, 9, 8, 7, 6, 0, 1, 1]
    for _ in range(2):  # first by digest, then by fingerprint
        batches = list(shards.batches(order, size))
        assert [len(batch.keys) for batch in batches] == [len(order[i : i + size]) for i in range(0, len(order), size)]
        assert [key for batch in batches for key in batch.keys] == [f"s{i:03d}" for i in order]
        samples = [shards[i] for i in order]
        assert np.array_equal(torch.cat([batch.images for batch in batches]), [sample.image for sample in samples])
        assert torch.cat([batch.labels for batch in batches]).tolist() == [sample.label for sample in samples]
        assert torch.cat([batch.has_roi for batch in batches]).tolist() == [sample.has_roi for sample in samples]
        for n, words in enumerate(torch.cat([batch.roi for batch in batches]).numpy()):
            bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
            assert np.array_equal(bits[:, :16].T, samples[n].roi)


@pytest.fixture
def run_lengths(monkeypatch):
    """A list to which every run appends its number of samples."""
    lengths, fill = [], ShardSet._fill
    monkeypatch.setattr(ShardSet, "_fill", lambda self, *args: (lengths.append(len(args[0])), fill(self, *args)))
    return lengths


def test_a_run_has_as_many_full_batches_as_fit(folder, monkeypatch, run_lengths):
    monkeypatch.setattr(reader, "_RUN", 7 * SAMPLE)
    shards = ShardSet(folder)
    for size, lengths in ((1, [7, 5]), (3, [6, 6]), (4, [4, 4, 4]), (8, [8, 4])):
        run_lengths.clear()
        list(shards.batches(range(12), size))
        assert sorted(run_lengths, reverse=True) == lengths


def test_png_images_are_read_batch_by_batch(pack_set, run_lengths):
    list(pack_set(source(), image_format="png").batches(range(12), 5))
    assert sorted(run_lengths) == [2, 5, 5]


@pytest.mark.parametrize("run", [1, 1e9])
def test_a_batch_in_use_is_never_overwritten(folder, monkeypatch, run):
    monkeypatch.setattr(reader, "_RUN", run)
    shards = ShardSet(folder)
    kept, copies = [], []
    for _ in range(6):
        for i, batch in enumerate(shards.batches(range(12), 2)):
            if i == len(kept) % 6:  # another batch of each epoch
                kept.append(batch)
                copies.append((batch.images.clone(), batch.roi.clone()))
                break
    for batch, (images, roi) in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.roi, roi)


def test_memory_is_reused_by_the_next_epoch_up_to_a_bound(folder, monkeypatch):
    allocated = []
    aligned = transfer._aligned
    monkeypatch.setattr(transfer, "_aligned", lambda size: allocated.append(size) or aligned(size))
    shards = ShardSet(folder)

    def epoch(samples):
        allocated.clear()
        for batch in shards.batches(range(samples), 2):
            del batch
        return len(allocated)

    monkeypatch.setattr(reader, "_RUN", 1)
    assert 2 <= epoch(12) < 12  # six batches of images and words
    assert epoch(12) == epoch(11) == 0  # also where the last batch is smaller
    monkeypatch.setattr(transfer, "_KEPT", 100)
    assert epoch(12) == 0
    assert epoch(12) > 0  # the epoch before left more than may be kept

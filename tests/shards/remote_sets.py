"""Helpers for the tests of remote sets."""

import time

import numpy as np

FIRST = "shard-000000.tar"


def until(holds):
    """Wait until a condition holds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_equal(shards, expected):
    """Check that two sets have equal samples."""
    assert (shards.name, shards.classes, len(shards)) == (expected.name, expected.classes, len(expected))
    for i in range(len(expected)):
        ours, theirs = shards[i], expected[i]
        assert (ours.key, ours.label, ours.group, ours.split) == (theirs.key, theirs.label, theirs.group, theirs.split)
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.roi, theirs.roi)

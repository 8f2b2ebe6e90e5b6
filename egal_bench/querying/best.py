"""The K best samples of a pool of any size, collected part by part, and the random order of samples of equal score."""

from __future__ import annotations

import hashlib

import numpy as np

from egal_bench.querying.score_files import Part
from egal_bench.strategies import Overlap


def tie_ranks(pools: np.ndarray, keys: np.ndarray, seed: int) -> np.ndarray:
    """Return a number per sample, uint64 [n]: of equal scores, the sample with the smaller number comes first.

    It is the BLAKE2b hash of the names of pool and sample, keyed with the seed: a uniformly random order that needs no
    permutation of the whole pool, and does not depend on how a pool is divided into shards.
    """
    secret = seed.to_bytes(8, "little")
    names = (f"{pool}/{key}".encode() for pool, key in zip(pools.tolist(), keys.tolist(), strict=True))
    digests = [hashlib.blake2b(name, digest_size=8, key=secret).digest() for name in names]
    return np.frombuffer(b"".join(digests), "<u8")


class Best:
    """The samples of highest score among those that were added: in any order, the same samples in the same order.

    NaN is lower than every score. Equal scores come in the order of `tie_ranks`.

    Args:
        number: samples to keep.
        seed: seed of the order of ties.
    """

    def __init__(self, number: int, seed: int) -> None:
        self._number, self._seed = number, seed
        self.scores = np.empty(0)
        self.pools = np.empty(0, str)
        self.shards = np.empty(0, str)
        self.part: Part | None = None
        self._ties = np.empty(0, np.uint64)

    def add(self, pool: str, shard: str, part: Part, scores: np.ndarray) -> None:
        """Add samples of one shard.

        Args:
            pool: name of their pool.
            shard: name of their shard.
            part: the samples, n.
            scores: float64 [n].
        """
        rows = self._contenders(scores)
        if not len(rows):
            return
        part, names = part[rows], np.full(len(rows), pool)
        merged = part if self.part is None else joined([self.part, part])
        all_scores = np.concatenate([self.scores, scores[rows]])
        pools = np.concatenate([self.pools, names])
        shards = np.concatenate([self.shards, np.full(len(rows), shard)])
        ties = np.concatenate([self._ties, tie_ranks(names, part.keys, self._seed)])
        order = np.lexsort((merged.keys, pools, ties, -all_scores))[: self._number]
        self.scores, self._ties = all_scores[order], ties[order]
        self.pools, self.shards, self.part = pools[order], shards[order], merged[order]

    def _contenders(self, scores: np.ndarray) -> np.ndarray:
        """Return the rows that may belong to the best: only their keys need a hash."""
        if len(self.scores) < self._number or np.isnan(self.scores[-1]):
            if len(scores) <= self._number or np.isnan(scores).any():
                return np.arange(len(scores))
            return np.flatnonzero(scores >= np.partition(scores, -self._number)[-self._number])
        return np.flatnonzero(scores >= self.scores[-1])


def joined(parts: list[Part]) -> Part:
    """Return the samples of all parts, in their order."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    areas = ("intersection", "cam_area", "roi_area", "dice")
    return Part(
        column("keys"), column("groups"), column("positions"), column("logits"), column("entropy"),
        Overlap(*(np.concatenate([getattr(part.overlap, name) for part in parts]) for name in areas)),
    )  # fmt: skip

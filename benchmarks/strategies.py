"""Queries of the strategies that read pooled features: time, memory, and scikit-activeml beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.processes import number_printed_by
from benchmarks.registry import Absent, Case, benchmark
from egal_bench.config import Config
from egal_bench.strategies import Overlap, Pool, find

CHANNELS, CLASSES, LABELLED, BUDGET, THREADS = 1280, 4, 150, 60, 2
MOST_MB = 256  # beyond the features: k-means and the principal axes are fitted to a bounded number of rows
DELTA = 50.5  # of probcover: the balls of these features then hold a few percent of the pool
NAMES = ("random", "entropy", "bald", "egal(diverse=10)", "kcenter", "badge", "typiclust", "probcover")
MEMORY = """
import sys
from benchmarks.strategies import pool_of
from egal_bench.strategies import find
pool = pool_of(sys.argv[1], int(sys.argv[2]))
find(sys.argv[1])(pool_of(sys.argv[1], 300))  # imports and compiled kernels do not count
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from the present size
before = peak()
find(sys.argv[1])(pool)
print(peak() - before)
"""


def pool_of(name: str, samples: int) -> Pool:
    """Return a pool of clustered features float32 [N, CHANNELS], as a trained network has them, for one strategy."""
    rng = np.random.default_rng(0)
    bound, total = find(name), samples + LABELLED
    centres = rng.normal(scale=1.0, size=(40, CHANNELS)).astype(np.float32)
    features = centres[rng.integers(0, len(centres), total)]
    for start in range(0, total, 4096):  # no second copy of the features
        part = features[start : start + 4096]
        part += rng.standard_normal(part.shape, np.float32)
    logits = features[:samples, :CLASSES] * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    area = rng.integers(1, 500, samples)
    return Pool(
        keys=np.arange(samples).astype(str), logits=logits, entropy=-(p * np.log(p)).sum(axis=1),
        labelled_keys=np.arange(LABELLED).astype(str), labelled_labels=rng.integers(0, CLASSES, LABELLED),
        labelled_groups=np.arange(LABELLED).astype(str), groups=np.arange(samples).astype(str), classes=tuple("abcd"),
        round=1, budget=BUDGET, rng=rng, tie_order=rng.permutation(samples), config=Config(threads=THREADS),
        needs=bound.needs, name=name, private={
            "features": features[:samples], "labelled_features": features[samples:],
            "overlap": Overlap(area, area, area, rng.random(samples)),
            "draws": rng.standard_normal((samples, 20, CLASSES), np.float32) if "draws" in bound.needs else None,
        },
    )  # fmt: skip


@benchmark({f"{name}, {label}": (name, size) for label, size in (("10⁴", 10_000), ("10⁵", 100_000)) for name in NAMES},
           rounds=3)  # fmt: skip
def query(case: tuple[str, int], home: Path) -> Case:
    """One query of a budget, from features of as many channels as EfficientNet-Lite0 has.

        python -m benchmarks strategies/query

    Why they differ: a ranking reads the scores alone. `kcenter`, `badge` and `egal(diverse=10)` compute the distances
    of their candidates to one centre after the other, in one pass per bought sample. `typiclust` clusters first.
    `probcover` counts pairs of samples; the first principal axes exclude most of them.
    """
    name, size = case
    pool, strategy = pool_of(name, size), find(name)

    def check() -> None:
        bought = strategy(pool).indices
        assert len(set(bought.tolist())) == BUDGET
        assert bought.max() < size

    return Case(contenders={name: lambda: strategy(pool)}, samples=size, check=check)


@benchmark({f"{name}, {label}": (name, size) for label, size in (("10⁴", 10_000), ("10⁵", 100_000)) for name in NAMES},
           rounds=1, metric="peak_mb")  # fmt: skip
def query_memory(case: tuple[str, int], home: Path) -> Case:
    """The memory that one query takes beyond the features, which may lie in a memory map.

        python -m benchmarks strategies/query-memory

    Why it stays small: distances are computed in chunks, and what is kept is a few numbers per sample. The gradient
    embeddings of `badge` and the matrix of distances are never built. k-means is fitted to at most 20,000 rows.
    """
    name, size = case

    def check() -> None:
        """Raise AssertionError if a query takes more memory than a pool of any size may."""
        assert number_printed_by(MEMORY, name, 10_000) < MOST_MB

    return Case(
        contenders={name: lambda: number_printed_by(MEMORY, name, size)}, samples=size, check=check
    )  # fmt: skip


@benchmark({"10⁴": 10_000}, rounds=3)
def core_set(size: int, home: Path) -> Case:
    """K-center greedy, against CoreSet of scikit-activeml.

        python -m benchmarks strategies/core-set

    Why it is faster: a step computes the distances to the last centre alone, from float32 features, in threads and
    without a copy of the features.
    """
    pool, peer = pool_of("kcenter", size), _peers()
    features, unlabelled = _stacked(pool)
    strategy = find("kcenter")

    def theirs() -> np.ndarray:
        return peer.CoreSet(random_state=0).query(features, unlabelled, batch_size=BUDGET)

    def check() -> None:
        assert strategy(pool).indices.tolist() == theirs().tolist()

    return Case(contenders={"kcenter": lambda: strategy(pool), "scikit-activeml": theirs}, samples=size, check=check)


@benchmark({"10⁴": 10_000}, rounds=1)
def coverage(size: int, home: Path) -> Case:
    """Greedy coverage with a given radius, against ProbCover of scikit-activeml.

        python -m benchmarks strategies/coverage

    Why it is faster: no matrix of all distances is built, and bounds by a projection exclude most pairs.
    """
    name = f"probcover(delta={DELTA})"
    pool, peer = pool_of(name, size), _peers()
    features, unlabelled = _stacked(pool)
    strategy = find(name)

    def theirs() -> np.ndarray:
        return peer.ProbCover(deltas=[DELTA], random_state=0).query(features, unlabelled, batch_size=BUDGET)

    def check() -> None:
        """Raise AssertionError unless both cover nearly as many samples: ties are broken at random by the peer."""
        covered, covered_by_peer = (_covered(pool, indices) for indices in (strategy(pool).indices, theirs()))
        assert abs(covered - covered_by_peer) <= 0.02 * covered_by_peer

    return Case(contenders={"probcover": lambda: strategy(pool), "scikit-activeml": theirs}, samples=size, check=check)


def _peers():
    """Return scikit-activeml's strategies."""
    try:
        import skactiveml.pool as peer
    except ImportError:
        raise Absent("scikit-activeml is not installed (extra `peers`)") from None
    return peer


def _stacked(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of pool and labelled set, float64, and labels that are NaN in the pool."""
    features = np.concatenate([pool.features, pool.labelled_features]).astype(np.float64)
    return features, np.concatenate([np.full(len(pool), np.nan), pool.labelled_labels.astype(np.float64)])


def _covered(pool: Pool, indices: np.ndarray) -> int:
    """Return how many samples lie within DELTA of a labelled or a bought sample."""
    centres = np.concatenate([pool.labelled_features, pool.features[indices]]).astype(np.float64)
    squared = (
        (pool.features.astype(np.float64) ** 2).sum(1)[:, None]
        + (centres**2).sum(1)
        - 2 * (pool.features.astype(np.float64) @ centres.T)
    )
    return int((squared <= DELTA**2).any(axis=1).sum())

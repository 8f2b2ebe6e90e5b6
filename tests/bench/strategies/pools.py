"""Pools for tests of strategies: what a strategy sees, without data, network or shards."""

from dataclasses import replace

import numpy as np

from egal_bench.config import Config
from egal_bench.strategies import BoundStrategy, Overlap, Pool, find
from egal_bench.strategies.pool import MapBatch, MapStream

CLASSES = ("a", "b", "c", "d")
CHANNELS = 6
CELLS, PIXELS = 4, 10  # per side, of the feature maps and of the ROIs
BATCH = 7


def map_stream(maps: np.ndarray, class_maps: np.ndarray) -> MapStream:
    """Return the stream of these maps [N, C, h, w] and class maps [N, h, w], BATCH samples at a time."""
    starts = range(0, len(maps), BATCH)
    return MapStream(lambda: (MapBatch(maps[i : i + BATCH], class_maps[i : i + BATCH]) for i in starts))


def permuted_stream(stream: MapStream, order: np.ndarray) -> MapStream:
    """Return the stream whose sample i is sample `order[i]` of `stream`."""
    batches = list(stream)
    maps, class_maps = (np.concatenate([getattr(b, name) for b in batches]) for name in ("maps", "class_maps"))
    return map_stream(maps[order], class_maps[order])


def random_maps(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random feature maps and class maps of n samples."""
    maps, class_maps = rng.normal(size=(n, CHANNELS, CELLS, CELLS)), rng.normal(size=(n, CELLS, CELLS))
    return maps.astype(np.float32), class_maps.astype(np.float32)


def made_pool(
    strategy: str | BoundStrategy = "egal", n: int = 30, *, seed: int = 0, budget: int = 5, labelled: int = 8,
    dice: np.ndarray | None = None, draw_seed: int = 7, **settings,
) -> Pool:  # fmt: skip
    """Return a pool of random logits, features and Dice values, which opens to `strategy` what that declares.

    Args:
        dice: float [n]; None: random.
        draw_seed: of the pool's own Generator, from which strategies draw.
        settings: fields of Config.
    """
    bound = find(strategy) if isinstance(strategy, str) else strategy
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, len(CLASSES)))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    dice = rng.random(n) if dice is None else dice
    private = {
        "roi": {"overlap": Overlap(*rng.integers(1, 99, (3, n)), dice.copy())},
        "features": {
            "features": rng.normal(size=(n, CHANNELS)), "labelled_features": rng.normal(size=(labelled, CHANNELS)),
        },
        "pool-labels": {"labels": rng.integers(0, len(CLASSES), n)},
        "draws": {"draws": np.random.default_rng(seed).normal(size=(n, 5, len(CLASSES)))},
        "shuffled-roi": {},
        "labelled-roi": {"labelled_roi": rng.random((labelled, PIXELS, PIXELS)) < 0.3},
        "maps": {
            "maps": map_stream(*random_maps(np.random.default_rng([seed, 1]), n)),
            "labelled_maps": map_stream(*random_maps(np.random.default_rng([seed, 2]), labelled)),
        },
    }  # fmt: skip
    return Pool(
        keys=np.array([f"k{i:03}" for i in range(n)]), logits=logits, entropy=-(p * np.log(p)).sum(1),
        labelled_keys=np.array([f"l{i:03}" for i in range(labelled)]),
        labelled_labels=rng.integers(0, len(CLASSES), labelled),
        labelled_groups=np.array([f"h{i}" for i in range(labelled)]), groups=np.array([f"g{i // 2}" for i in range(n)]),
        classes=CLASSES, round=1, budget=budget, rng=np.random.default_rng(draw_seed), tie_order=rng.permutation(n),
        config=Config(**settings), needs=bound.needs, name=bound.name,
        private={key: value for need in bound.needs for key, value in private[need].items()},
    )  # fmt: skip


def changed(pool: Pool, **fields) -> Pool:
    """Return a copy of `pool` with these fields, and a fresh Generator."""
    return replace(pool, rng=np.random.default_rng(7), **fields)


def permuted(pool: Pool, order: np.ndarray) -> Pool:
    """Return the same samples in another order: sample `order[i]` of `pool` is sample i."""
    arrays = {name: getattr(pool, name)[order] for name in ("keys", "logits", "entropy", "groups", "tie_order")}
    of_pool = ("overlap", "features", "draws", "labels")  # `labelled_features` follow the labelled set
    private = {name: value[order] if name in of_pool else value for name, value in pool.private.items()}
    if "maps" in private:
        private["maps"] = permuted_stream(private["maps"], order)
    return changed(pool, **arrays, private=private)

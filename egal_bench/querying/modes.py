"""How a strategy reads a pool that need not fit into memory: the one place where strategies are classed."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.strategies import BoundStrategy, find

# What a strategy may read here, of strategies.pool.NEEDS; the reasons why it cannot read the others
GIVEN = frozenset({"roi", "features", "maps", "labelled-roi"})
REASONS = {
    "pool-labels": "it reads the true labels of the pool, which nobody has",
    "shuffled-roi": "it is a control for comparisons, with the ROIs of other samples",
    "draws": "it needs stochastic heads, and the file of a network holds one head",
}
FEATURES = frozenset({"features", "maps"})  # too large to keep for every sample
# Parameters of built-in strategies with the values that make the score of a sample depend on all others
OF_WHOLE_POOL: dict[str, Collection[object]] = {"normalise": ("minmax", "rank"), "area_matched": (True,)}


class Mode(Enum):
    """What a strategy needs in memory at a time."""

    ROW_WISE = "shard by shard, exact"
    WHOLE_POOL = "on a few numbers of every sample at once, exact"
    SET_WISE = "on the best candidates of another score, with their features"


def mode_of(strategy: BoundStrategy) -> Mode:
    """Return the mode of a strategy.

    Whatever reads features or feature maps gets those of candidates, which are read again. Any other strategy of the
    user's own may compare samples, so it sees the whole pool. A built-in one scores each sample by itself, unless a
    parameter of OF_WHOLE_POOL says otherwise; the mean D of `empty-roi` is a single number, which a first pass finds.
    """
    if strategy.needs & FEATURES:
        return Mode.SET_WISE
    of_whole_pool = any(getattr(strategy.parameters, name, None) in values for name, values in OF_WHOLE_POOL.items())
    return Mode.WHOLE_POOL if of_whole_pool or strategy.strategy.source else Mode.ROW_WISE


def check_usable(strategy: BoundStrategy) -> None:
    """Raise BenchError where the strategy reads what a pool in practice, or the file of a network, does not give."""
    lacking = sorted(strategy.needs - GIVEN)
    if lacking:
        reason = next((REASONS[need] for need in lacking if need in REASONS), f"it needs {lacking[0]}")
        raise BenchError(f"--strategy {strategy.name}: {reason}; choose another, such as entropy")


def preselection(strategy: BoundStrategy, config: Config) -> BoundStrategy:
    """Return the row-wise strategy by which the candidates of a set-wise one are chosen.

    Where only parameters make the strategy read features, as in `egal(diverse=10)`, it is the strategy without these;
    otherwise it is `entropy`.
    """
    if not strategy.strategy.needs & FEATURES:
        conditional = {name for name, need in strategy.strategy.parameter_needs.items() if need in FEATURES}
        defaults = {name: type(strategy.parameters).model_fields[name].default for name in conditional}
        plain = BoundStrategy(
            strategy.strategy.name, strategy.strategy, strategy.parameters.model_copy(update=defaults)
        )
        if mode_of(plain) is Mode.ROW_WISE:
            return plain
    return find("entropy", config)

"""Acquisition strategies: from a view of the unlabelled pool to a ranked query. No torch: strategies decide."""

from egal_bench.strategies.declaration import BoundStrategy, Strategy
from egal_bench.strategies.groups import expand
from egal_bench.strategies.pool import Overlap, Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import available, find, strategy

__all__ = ["BoundStrategy", "Overlap", "Pool", "Query", "Strategy", "available", "expand", "find", "strategy"]

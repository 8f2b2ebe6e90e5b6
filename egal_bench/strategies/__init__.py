"""Acquisition strategies: from a view of the unlabelled pool to a ranked query. No torch: strategies decide."""

from egal_bench.strategies.pool import Overlap, Pool
from egal_bench.strategies.query import Query
from egal_bench.strategies.registry import BoundStrategy, Strategy, available, find, strategy

__all__ = ["BoundStrategy", "Overlap", "Pool", "Query", "Strategy", "available", "find", "strategy"]

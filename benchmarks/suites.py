"""All suites of benchmarks; importing this module registers what they declare."""

from benchmarks import comparison, kernels, pool_pass, score, shards, strategies, training_step
from benchmarks.registry import BENCHMARKS

__all__ = ["BENCHMARKS", "comparison", "kernels", "pool_pass", "score", "shards", "strategies", "training_step"]

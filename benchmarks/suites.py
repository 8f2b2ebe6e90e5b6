"""Every suite, imported for what it declares."""

from benchmarks import comparison, kernels, pool_pass, shards, training_step
from benchmarks.registry import BENCHMARKS

__all__ = ["BENCHMARKS", "comparison", "kernels", "pool_pass", "shards", "training_step"]

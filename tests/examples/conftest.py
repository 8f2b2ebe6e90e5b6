"""Fixtures that the tests of the examples share."""

from bench.in_process import egal_bench_here, unrendered, user_module  # noqa: F401, fixtures

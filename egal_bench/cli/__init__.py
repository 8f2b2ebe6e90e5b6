"""The command line: one module per command."""

from egal_bench.cli.main import main

__all__ = ["main"]

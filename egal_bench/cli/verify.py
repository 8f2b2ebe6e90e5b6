"""`egal-bench verify`: every byte of a shard set against its manifest and index."""

from __future__ import annotations

from typing import Annotated

import typer

from egal_bench.cli.output import Json, counted_noun, print_json
from egal_shards.urls import shown


def verify(shards: Annotated[str, typer.Argument(help="folder or URL of a shard set")], as_json: Json = False) -> None:
    """Check every byte of a shard set against its manifest and index."""
    import egal_shards

    report = egal_shards.verify(shards)
    samples, files = counted_noun(report.samples, "sample"), counted_noun(report.shards, "shard")
    print(f"{shown(shards)}: {samples} in {files}, {report.bytes} bytes: all as packed")
    if as_json:
        print_json({"samples": report.samples, "shards": report.shards, "bytes": report.bytes, "ok": True})

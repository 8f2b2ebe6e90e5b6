"""What the commands share in their output: the flag --json and its line, plurals, and tables for the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="the last line of stdout is the result as one JSON object")]


def print_json(result: Mapping[str, Any]) -> None:
    """Print the result as one JSON object on one line."""
    print(json.dumps(result))


def print_table(table: RenderableType, width: int) -> None:
    """Print a rich table as wide as the terminal, or `width` columns wide where stdout is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))  # rich pads lines with spaces


def counted_noun(number: int, noun: str) -> str:
    """Return "1 shard", "2 shards"."""
    return f"{number} {noun}{'s' * (number != 1)}"

"""`egal-bench list`: what can be named in flags and specifications."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from egal_bench.cli.output import Json, print_json
from egal_bench.cli.streams import check_stdout
from egal_bench.errors import unknown

LISTS = ("strategies", "sources", "backbones", "conventions")
NAME_COLUMN = 25  # characters: a name and a space
WIDEST = 120  # characters of a line; longer lines are hard to read


def list_(what: Annotated[str, typer.Argument(help=" | ".join(LISTS))], as_json: Json = False) -> None:
    """List the strategies, sources, backbones or conventions that exist."""
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    _print(what)
    if as_json:
        print_json({what: _listed(what)})
    check_stdout()


def _print(what: str) -> None:
    if what == "strategies":
        _print_strategies()
        return
    for name, summary in _listed(what).items():
        _print_entry(name, summary)


def _print_strategies() -> None:
    from egal_bench.strategies import available
    from egal_bench.strategies.listing import described

    for name, strategy in available().items():
        access = f" [reads {', '.join(sorted(strategy.needs))}]" if strategy.needs else ""
        _print_entry(name, f"{strategy.summary}{access}")
        for line in described(strategy):
            _print_wrapped(line, "    ", 8)


def _print_entry(name: str, text: str) -> None:
    """Print a name and, in the column beside it, its text."""
    _print_wrapped(text, f"{name:{NAME_COLUMN - 1}} ", NAME_COLUMN)


def _print_wrapped(text: str, start: str, indent: int) -> None:
    """Print `start` and the text, wrapped at words to the width of the terminal; later lines are indented."""
    width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    lines = textwrap.wrap(
        text, max(width, 2 * NAME_COLUMN), initial_indent=start, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    print("\n".join(lines or [start.rstrip()]))


def _listed(what: str) -> dict[str, str]:
    if what == "strategies":
        from egal_bench.strategies import available

        return {name: strategy.summary for name, strategy in available().items()}
    if what == "sources":
        from egal_shards.sources import SOURCES

        return {name: entry.summary for name, entry in SOURCES.items()}
    if what == "conventions":
        from egal_kernels.conventions import CONVENTIONS

        return dict(CONVENTIONS)
    from egal_bench.models.backbones import BACKBONES

    return BACKBONES

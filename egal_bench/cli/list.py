"""`egal-bench list`: what can be named in flags and specifications."""

from __future__ import annotations

from typing import Annotated

import typer

from egal_bench.cli.output import Json, print_json
from egal_bench.cli.streams import check_stdout
from egal_bench.errors import unknown

LISTS = ("strategies", "sources", "backbones", "conventions")


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
        print(f"{name:24} {summary}")


def _print_strategies() -> None:
    from egal_bench.strategies import available
    from egal_bench.strategies.listing import described

    for name, strategy in available().items():
        access = f" [reads {', '.join(sorted(strategy.needs))}]" if strategy.needs else ""
        print(f"{name:24} {strategy.summary}{access}")
        for line in described(strategy):
            print(f"{'':24}   {line}")


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

"""Flags that derive from the fields of Config: name, help and default are read off the field."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="the last line of stdout is the result as one JSON object")]


def option(name: str, kind: Any, *declaration: str, default: Any = None, **how: Any) -> inspect.Parameter:
    """A keyword-only parameter that typer reads as a flag."""
    annotation = Annotated[kind, typer.Option(*declaration, **how)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def config_options(fields: Iterable[str], defaults: Mapping[str, str] | None = None) -> list[inspect.Parameter]:
    """A flag for each of these fields of Config, None unless given; help says `defaults`, or else the field's."""
    from egal_bench.config import Config, flag_of

    found = []
    for name in fields:
        field = Config.model_fields[name]
        default = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
        said = (defaults or {}).get(name, "none" if default is None else default)
        text = f"{field.description}  [default: {said}]"
        if field.annotation is bool:
            pair = f"{flag_of(name)}/--no-{flag_of(name)[2:]}"
            found.append(option(name, bool | None, pair, help=text.replace("False]", "no]")))
        else:
            found.append(option(name, str | None, flag_of(name), help=text, metavar="VALUE"))
    return found

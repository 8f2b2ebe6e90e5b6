"""How flags are made: those that derive from the fields of Config, and commands whose flags are computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, get_origin

import typer

from egal_bench.cli.output import Json


def option(name: str, kind: Any, *declaration: str, default: Any = None, **settings: Any) -> inspect.Parameter:
    """Return a keyword-only parameter that typer reads as a flag.

    Args:
        kind: the type of its value, or a complete `Annotated` type.
        declaration: how the flag is written, such as `--name`.
        settings: further arguments of `typer.Option`.
    """
    annotation = kind if get_origin(kind) is Annotated else Annotated[kind, typer.Option(*declaration, **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def json_flag() -> inspect.Parameter:
    """Return the parameter of the flag --json."""
    return option("as_json", Json, default=False)


def config_options(fields: Iterable[str], defaults: Mapping[str, str] | None = None) -> list[inspect.Parameter]:
    """Return a flag for each of these fields of Config, whose value is None unless the flag is given.

    Args:
        fields: names of fields.
        defaults: what the help says of the default, by field, where it is not the field's own default.
    """
    from egal_bench.config import Config, flag_of

    options = []
    for name in fields:
        field = Config.model_fields[name]
        default = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
        shown_default = (defaults or {}).get(name, "none" if default is None else default)
        text = f"{field.description}  [default: {shown_default}]"
        if field.annotation is bool:
            pair = f"{flag_of(name)}/--no-{flag_of(name)[2:]}"
            options.append(option(name, bool | None, pair, help=text.replace("False]", "no]")))
        else:
            options.append(option(name, str | None, flag_of(name), help=text, metavar="VALUE"))
    return options


def own_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that `function` names, without its `**flags`, their annotations evaluated."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def command_of(function: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Return a command that has these parameters and passes their values to `function` by name."""

    def command(**values: Any) -> None:
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    return command

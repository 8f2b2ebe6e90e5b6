"""Specifications such as `egal(lambda=0.3,empty-roi=exclude)`: a name and its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from egal_bench.errors import BenchError, unknown

MAX_SEEDS = 10_000


@dataclass(frozen=True)
class Specification:
    """A name, such as `egal` or `my_module:Mine`, and the parameters that were written after it, as text."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Specification:
        """Return the Specification that `text` writes. Raises BenchError where the parentheses or `=` do not fit."""
        match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
        if match is None:
            raise BenchError(f"{text!r}: expected NAME or NAME(parameter=value,…)")
        parameters: dict[str, str] = {}
        for part in split_list(match[2] or ""):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals and value):
                raise BenchError(f"{text!r}: {part!r} is not parameter=value")
            if name.replace("_", "-") in parameters:
                raise BenchError(f"{text!r}: {name} is given twice")
            parameters[name.replace("_", "-")] = value
        return cls(match[1], parameters)


def split_list(text: str) -> list[str]:
    """Return the parts of a comma-separated list; commas within parentheses do not separate."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def parse_seeds(text: int | str) -> tuple[int, ...]:
    """Return the seeds that `5` (0 to 4), `5:10` (5 to 9) or a list such as `3,7` names, in ascending order.

    Raises:
        ValueError: the text names no seed, one twice, or one that is not a whole number below 2³².
    """
    parts = [part.strip() for part in str(text).split(",")]
    if isinstance(text, bool) or not all(re.fullmatch(r"\d{1,10}(:\d{1,10})?", part) for part in parts):
        raise ValueError("expected a number of seeds, a range such as 5:10, or a list such as 3,7")
    seeds: list[int] = []
    for part in parts:
        first, colon, end = part.partition(":")
        if not colon and len(parts) == 1:
            first, end = "0", first
        if end and int(end) - int(first) > MAX_SEEDS:
            raise ValueError(f"more than {MAX_SEEDS} seeds")
        seeds += range(int(first), int(end)) if end else [int(first)]
    if not seeds or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise ValueError("expected at least one seed, none of them twice, each below 2**32")
    return tuple(sorted(seeds))


def parse_part(text: str | None) -> tuple[int, int]:
    """Return (i, n) of a part such as `2/8`, and (1, 1) for None. Raises ValueError unless 1 ≤ i ≤ n."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", "1/1" if text is None else text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError("expected I/N with I from 1 to N, such as 2/8")
    return int(match[1]), int(match[2])


def written(name: str, parameters: BaseModel) -> str:
    """Return the canonical specification: `name`, and the parameters that differ from their defaults, sorted."""
    fields = type(parameters).model_fields
    changed = {
        parameter_name(field): _text(value)
        for field, value in parameters
        if value != fields[field].get_default(call_default_factory=True)
    }
    return f"{name}({','.join(f'{key}={changed[key]}' for key in sorted(changed))})" if changed else name


def validated(specification: Specification, schema: type[BaseModel], flags: Mapping[str, Any]) -> BaseModel:
    """Return the parameters of `specification` as an instance of `schema`.

    Args:
        flags: values, by field of `schema`, of the parameters that the specification leaves out.

    Raises:
        BenchError: a parameter that `schema` does not have, or a value outside its type or bounds.
    """
    fields = {parameter_name(field): field for field in schema.model_fields}
    for name in specification.parameters:
        if name not in fields:
            if not fields:
                raise BenchError(f"{specification.name} takes no parameters, so {name!r} is not one of them")
            raise unknown(f"parameter of {specification.name}", name, fields)
    written_values = {fields[name]: value for name, value in specification.parameters.items()}
    try:
        return schema.model_validate({**{k: v for k, v in flags.items() if k in schema.model_fields}, **written_values})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{specification.name}({parameter_name(str(first['loc'][0]))}={first['input']})"
        raise BenchError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def parameter_name(field: str) -> str:
    """Return the name that users write for a field: `empty-roi` for `empty_roi`, `lambda` for `lambda_`."""
    return field.rstrip("_").replace("_", "-")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)

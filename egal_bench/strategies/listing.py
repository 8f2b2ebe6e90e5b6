"""How the parameters of strategies are shown to users."""

from __future__ import annotations

from egal_bench.parameters import STRATEGY_FIELDS
from egal_bench.specifications import parameter_name
from egal_bench.strategies.declaration import Strategy


def described(strategy: Strategy) -> list[str]:
    """Return one line per parameter of `strategy`: name, default, bounds, meaning and the flag that sets it."""
    lines = []
    schemas = strategy.parameters.model_json_schema()["properties"] if strategy.parameters.model_fields else {}
    for name, field in strategy.parameters.model_fields.items():
        schema = schemas[name]
        choices = " | ".join(map(str, schema.get("enum", ())))
        lower = schema.get("minimum", schema.get("exclusiveMinimum"))
        upper = schema.get("maximum", schema.get("exclusiveMaximum"))
        bounds = f"{lower:g} to {upper:g}" if upper is not None else f"at least {lower:g}" if lower is not None else ""
        flag = f"; flag --{parameter_name(name)}" if name in STRATEGY_FIELDS else ""
        kind = choices or bounds or schema.get("type", "")
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default  # as it is written
        lines.append(f"{parameter_name(name)}={default} ({kind}{flag}): {field.description or ''}".rstrip(": "))
    return lines

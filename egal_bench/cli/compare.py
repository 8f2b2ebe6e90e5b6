"""`egal-bench compare`: a flag for each field of Config, whose help and default come from the field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from egal_bench.cli.flags import command_of, config_options, json_flag, option
from egal_bench.cli.output import print_json, print_table


def compare(*, preset: str | None, config: Path | None, as_json: bool, shards: list[str] | None, **fields: Any) -> None:
    """Compare acquisition strategies, on shard sets or on the built-in phantom."""
    from egal_bench.config import resolve

    flags = {name: value for name, value in fields.items() if value is not None}
    if shards:
        flags["shards"] = tuple(shards)
    elif preset is None and config is None:
        preset = "quick"  # made for the phantom; the other defaults are for real images
    settings = resolve(flags, preset, config)
    from egal_bench.reports.summary import summary_json, width_of
    from egal_bench.runs.comparison import compare as run_comparison

    comparison = run_comparison(settings)
    print_table(comparison.closing, width_of(comparison.closing))
    print(f"Tables, summary.txt and learning_curves.png: {comparison.out} ({comparison.seconds:.0f} s)")
    if as_json:
        seconds = round(comparison.seconds, 2)
        print_json({"out": str(comparison.out), **summary_json(comparison.summary), "seconds": seconds})


def compare_command() -> Callable[..., None]:
    """Return `compare` with its flags."""
    from egal_bench.config import PRESETS, Config

    shards = Annotated[list[str] | None, typer.Argument(help=Config.model_fields["shards"].description)]
    parameters = [
        option("shards", shards),
        option(
            "preset", str | None, "--preset", help=f"start from {' | '.join(PRESETS)}  [default: none, phantom: quick]"
        ),
        option(
            "config", Path | None, "--config", help="YAML file, `flag: value` lines; flags override it  [default: none]"
        ),
        *config_options(name for name in Config.model_fields if name != "shards"),
        json_flag(),
    ]
    return command_of(compare, parameters)

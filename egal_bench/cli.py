"""The command line. Heavy modules are imported by the command that needs them, so that --help answers at once."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from egal_bench.cli_flags import Json, config_options, option
from egal_bench.cli_inspect import inspect as inspect_
from egal_bench.cli_pack import pack, pack_command
from egal_bench.errors import BenchError, Interrupted, unknown
from egal_shards.errors import ShardError
from egal_shards.urls import redacted, shown

LISTS = ("strategies", "sources", "backbones", "conventions")


def verify(shards: Annotated[str, typer.Argument(help="folder or URL of a shard set")], as_json: Json = False) -> None:
    """Check every byte of a shard set against its manifest and index."""
    import egal_shards

    found = egal_shards.verify(shards)
    print(f"{shown(shards)}: {found.samples} samples in {found.shards} shards, {found.bytes} bytes: all as packed")
    if as_json:
        print(json.dumps({"samples": found.samples, "shards": found.shards, "bytes": found.bytes, "ok": True}))


def list_(what: Annotated[str, typer.Argument(help=" | ".join(LISTS))]) -> None:
    """List the strategies, sources, backbones or conventions there are."""
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    for name, text in _listed(what).items():
        print(f"{name:24} {text}")


def _listed(what: str) -> dict[str, str]:
    if what == "strategies":
        from egal_bench.strategies import available

        return available()
    if what == "sources":
        from egal_shards.sources import SOURCES

        return {name: entry.summary for name, entry in SOURCES.items()}
    if what == "conventions":
        from egal_kernels.conventions import CONVENTIONS

        return dict(CONVENTIONS)
    from egal_bench.config import BACKBONES

    return BACKBONES


def compare(*, preset: str | None, config: Path | None, as_json: bool, shards: list[str] | None, **flags: Any) -> None:
    """Compare acquisition strategies, on shard sets or on the built-in phantom."""
    from egal_bench.config import resolve

    given = {name: value for name, value in flags.items() if value is not None}
    if shards:
        given["shards"] = tuple(shards)
    elif preset is None and config is None:
        preset = "quick"  # the phantom's own: the other defaults are for real images
    settings = resolve(given, preset, config)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA: one seed, one result
    from egal_bench.comparison import compare as carry_out
    from egal_bench.report import summary_table

    done = carry_out(settings)
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 100).print(summary_table(done.summary))
    print(f"Tables and learning_curves.png: {done.out} ({done.seconds:.0f} s)")
    if as_json:
        columns = ["accuracy", "macro_auc", "aubc", "labels", "masks"]
        means = done.summary.groupby("strategy", sort=False)[columns].mean().to_dict("index")
        print(json.dumps({"out": str(done.out), "strategies": means, "seconds": round(done.seconds, 2)}))


def _from_config() -> Callable[..., None]:
    """`compare` with a flag for each field of Config, its help and default read off the field."""
    from egal_bench.config import PRESETS, Config

    none = "[default: none"
    parameters = [
        inspect.Parameter(
            "shards", inspect.Parameter.KEYWORD_ONLY, default=None,
            annotation=Annotated[list[str] | None, typer.Argument(help=Config.model_fields["shards"].description)],
        ),
        option("preset", str | None, "--preset", help=f"start from {' | '.join(PRESETS)}  {none}, phantom: quick]"),
        option("config", Path | None, "--config", help=f"YAML file, `flag: value` lines; flags override it  {none}]"),
        *config_options(name for name in Config.model_fields if name != "shards"),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
    ]  # fmt: skip

    def command(**values: Any) -> None:
        compare(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = compare.__doc__
    return command


def _profile(argv: list[str]) -> Callable[..., None]:
    """`profile`, with its flags only where it is called."""
    if argv[:1] != ["profile"]:
        return _without_flags("Measure the throughput of acquisition, stage by stage, against the forward pass alone.")
    from egal_bench.cli_profile import profile_command

    return profile_command()


def _app(argv: list[str]) -> typer.Typer:
    app = typer.Typer(
        rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
        help="Does an acquisition strategy really beat random sampling and plain uncertainty, and by how much, "
        "per label and per mask? Any command takes --debug: a traceback with an error.",
    )  # fmt: skip
    app.command()(verify)
    app.command("inspect")(inspect_)
    # flags that come from the sources and from Config, whose libraries take longer to load than --help may
    app.command("pack")(pack_command(argv[1:]) if argv[:1] == ["pack"] else _without_flags(pack.__doc__))
    app.command("compare")(_from_config() if argv[:1] == ["compare"] else _without_flags(compare.__doc__))
    app.command("profile")(_profile(argv))
    app.command("list")(list_)
    return app


def _without_flags(text: str | None) -> Callable[[], None]:
    def stub() -> None: ...

    stub.__doc__ = text
    return stub


def main() -> NoReturn:
    """Run the command line: exit status 0, 2 for what a person can mend, 130 for Ctrl-C, 1 for a defect."""
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(argv) < len(sys.argv) - 1
    try:
        status = _app(argv)(argv, standalone_mode=False)
        if status == 130:  # what typer makes of Ctrl-C
            _fail("interrupted", 130)
    except (KeyboardInterrupt, typer.Abort):
        status = _fail("interrupted", 130)
    except Exception as error:  # the last place where one can be turned into a line
        if debug:
            raise
        if isinstance(error, typer.TyperException):
            status = _fail(error.format_message(), 2)
        elif isinstance(error, BenchError | ShardError):
            status = _fail(str(error), 130 if isinstance(error, Interrupted) else 2)
        else:
            status = _fail(f"{type(error).__name__}: {error} (a defect of egal-bench: --debug shows where)", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    print(f"error: {redacted(' '.join(message.split()))}", file=sys.stderr)
    return status

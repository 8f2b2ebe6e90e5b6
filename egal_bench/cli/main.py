"""The command line's entry point. Each command imports heavy modules when it runs, so that --help answers at once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from egal_bench.cli.inspect import inspect
from egal_bench.cli.list import list_
from egal_bench.cli.report import report
from egal_bench.cli.streams import make_streams_safe
from egal_bench.cli.verify import verify
from egal_bench.errors import BenchError, Defect, Interrupted
from egal_bench.interrupts import raised_by
from egal_shards.errors import ShardError
from egal_shards.urls import redacted

# Commands whose flags come from Config or from the sources, which take longer to load than --help may: their help
# text stands here, and the module with their flags is imported only when the command is called.
COMPUTED = {
    "pack": "Pack annotated images into a shard set. `egal-bench pack SOURCE --help` adds the flags of that source.",
    "compare": "Compare acquisition strategies, on shard sets or on the built-in phantom.",
    "score": "Score a pool of any size with a trained network, and write which samples to annotate next.",
    "profile": "Measure the throughput of acquisition, stage by stage, against the forward pass alone.",
}


def main() -> NoReturn:
    """Run the command line and exit: status 0, 2 for a user's mistake, 130 for Ctrl-C, 1 for a defect."""
    make_streams_safe()
    # otherwise Python searches the objects of all libraries for garbage before it exits, which takes a second
    atexit.register(gc.freeze)
    _compile_with_numba()
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    try:
        with raised_by(signal.SIGINT, KeyboardInterrupt):
            status = _app(words)(words, standalone_mode=False)
        if status == 130:  # typer's answer to Ctrl-C
            _fail("interrupted", 130)
    except (KeyboardInterrupt, typer.Abort):
        status = _fail("interrupted", 130)
    except Exception as error:  # the last place where an exception can become one line
        if debug:
            raise
        status = _fail(*_line_and_status(error))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sys.exit(status if isinstance(status, int) else 0)


def _compile_with_numba() -> None:
    """Take back NUMBA_DISABLE_JIT for this process and its workers: the kernels exist in compiled form only."""
    if os.environ.pop("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        print("NUMBA_DISABLE_JIT is ignored: egal-bench needs Numba's compiler", file=sys.stderr)


def _line_and_status(error: Exception) -> tuple[str, int]:
    """Return the message for `error` and the exit status: 2 only where the error states a user's mistake."""
    if isinstance(error, typer.TyperException):
        return error.format_message(), 2
    if isinstance(error, BenchError | ShardError) or _is_argument_error(error):
        return str(error), 130 if isinstance(error, Interrupted) else 2
    text = str(error) if isinstance(error, Defect) else f"{type(error).__name__}: {error}"
    return f"{text} (a defect of egal-bench: --debug shows where)", 1


def _is_argument_error(error: Exception) -> bool:
    """Return whether `error` names a wrong argument of a kernel; kernels that were not loaded raised nothing."""
    module = sys.modules.get("egal_kernels.errors")
    return module is not None and isinstance(error, module.ArgumentError)


def _print_version(requested: bool) -> None:
    if requested:
        from egal_bench import __version__

        print(f"egal-bench {__version__}")
        raise typer.Exit


def _fail(message: str, status: int) -> int:
    print(f"error: {redacted(' '.join(message.split()))}", file=sys.stderr)
    return status


def _app(words: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
        help="Does an acquisition strategy really beat random sampling and plain uncertainty, and by how much, "
        "per label and per mask? Every command takes --debug: an error is then shown with its traceback.",
    )  # fmt: skip
    app.callback()(_options)
    app.command()(verify)
    app.command("inspect")(inspect)
    for name, summary in COMPUTED.items():
        app.command(name)(_computed(name, words[1:]) if words[:1] == [name] else _without_flags(summary))
    app.command("report")(report)
    app.command("list")(list_)
    return app


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="show the version")
    ] = False,
) -> None: ...


def _computed(name: str, words: Sequence[str]) -> Callable[..., None]:
    """Return the command `name` with its flags."""
    if name == "pack":
        from egal_bench.cli.pack import pack_command

        return pack_command(words)
    if name == "compare":
        from egal_bench.cli.compare import compare_command

        return compare_command()
    if name == "score":
        from egal_bench.cli.score import score_command

        return score_command()
    from egal_bench.cli.profile import profile_command

    return profile_command()


def _without_flags(summary: str) -> Callable[[], None]:
    """Return a command that only its line in the list of commands needs."""

    def stub() -> None: ...

    stub.__doc__ = summary
    return stub

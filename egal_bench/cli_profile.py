"""`egal-bench profile`: its flags, and what it prints."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option as Flag

from egal_bench.cli_flags import Json, config_options
from egal_bench.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Group

OF_PASS = "as a pool pass: 32, on a GPU 256"
FIELDS = (
    "backbone", "weights", "size", "precision", "device", "threads", "explain_convention", "threshold", "overlap",
    "lambda_", "empty_roi", "phantom", "phantom_samples",
)  # fmt: skip
PHANTOM = {"size": "224", "phantom_samples": "400"}  # what a phantom is drawn with, unless a flag says otherwise


def profile(
    *,
    shards: Annotated[str | None, typer.Argument(help="shard set, folder or URL; none: the built-in phantom")] = None,
    batch_size: Annotated[
        str | None, Flag(help=f"images in a batch, or `auto`: the fastest  [default: {OF_PASS}]", metavar="N")
    ] = None,
    samples: Annotated[
        int | None, Flag(help="images in each timed run, whole batches  [default: about 1 s of the network]")
    ] = None,
    rounds: Annotated[int, Flag(help="timed runs of each stage, all stages taking turns")] = 10,
    peers: Annotated[
        bool, Flag("--peers", help="also the installed peers: pytorch-grad-cam, torch-cam, MONAI, captum")
    ] = False,
    trace: Annotated[Path | None, Flag(help="write a Chrome trace (Perfetto) of one pass here, JSON")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        Flag(help="OLD NEW: measure nothing, show what changed between two profiles", metavar="OLD NEW"),
    ] = None,
    out: Annotated[Path, Flag(help="folder of the profiles: Parquet and a PNG beside it")] = Path("profiles"),
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Measure the throughput of acquisition, stage by stage, against the forward pass alone and other libraries."""
    if compare is not None:
        _compare(*compare, as_json)
        return
    batch = _batch(batch_size)
    for name, value in (("--samples", samples), ("--rounds", rounds)):
        if value is not None and value < 1:
            raise BenchError(f"{name} {value}: at least 1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of the trace: it reports each missing GPU as an error
    from egal_bench import profile as module
    from egal_bench.config import resolve
    from egal_bench.profile_report import as_json as result
    from egal_bench.profile_report import draw_stages, stage_table
    from egal_shards.threads import cores

    given = {"threads": cores()} | (PHANTOM if shards is None else {"shards": (shards,)})
    given |= {name: value for name, value in flags.items() if value is not None}
    done = module.profile(
        resolve(given), out, batch=batch, samples=samples, rounds=rounds, with_peers=peers, trace=trace
    )
    picture = done.path.with_suffix(".png")
    draw_stages(done, picture)
    _show(stage_table(done))
    print(f"Table: {done.path}\nPicture: {picture}" + (f"\nTrace: {trace} (open in ui.perfetto.dev)" if trace else ""))
    if as_json:
        print(json.dumps(result(done)))


def _compare(old: Path, new: Path, as_json: bool) -> None:
    from egal_bench.measurements import load
    from egal_bench.profile_changes import changes, changes_table

    found = changes(load(old), load(new))
    _show(changes_table(found))
    if as_json:
        print(json.dumps({"changes": found.rows.to_dict("records"), "different": found.different}))


def _show(table: Group) -> None:
    """Print it as wide as the terminal; to a file, wide enough for all columns."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _batch(text: str | None) -> int | Literal["auto"] | None:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isdecimal() or not int(text):
        raise BenchError(f"--batch-size {text}: a number of images, or auto")
    return int(text)


def profile_command() -> Callable[..., None]:
    """`profile` with the flags that it shares with `compare`."""
    parameters = [p for p in inspect.signature(profile, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
    said = {"threads": "every core", "size": "the set's; phantom: 224", "phantom_samples": PHANTOM["phantom_samples"]}

    def command(**values: Any) -> None:
        profile(**values)

    command.__signature__ = inspect.Signature(parameters + config_options(FIELDS, said))  # type: ignore[attr-defined]
    command.__doc__ = profile.__doc__
    return command

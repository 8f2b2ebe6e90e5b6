"""`egal-bench profile`: its flags and its output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option as Flag

from egal_bench.cli.flags import command_of, config_options, own_parameters
from egal_bench.cli.output import Json, print_json, print_table
from egal_bench.errors import BenchError

DEFAULT_BATCH = "as in a pool pass: 32, on a GPU 256"
FIELDS = (
    "backbone", "weights", "size", "precision", "compile", "device", "threads", "explain_convention", "threshold",
    "overlap", "lambda_", "empty_roi", "phantom", "phantom_samples",
)  # fmt: skip
WIDTH = 120  # columns of the tables where stdout is no terminal
SIZE = "224"  # pixels per side of the phantom, unless a flag says otherwise
SAMPLES, CUDA_SAMPLES = "400", "4400"  # its samples: on a GPU, ten batches of a pool pass and more


def profile(
    *,
    shards: Annotated[str | None, typer.Argument(help="shard set, folder or URL; none: the built-in phantom")] = None,
    batch_size: Annotated[
        str | None,
        Flag(help=f"images per batch, or `auto` for the fastest number  [default: {DEFAULT_BATCH}]", metavar="N"),
    ] = None,
    samples: Annotated[
        int | None, Flag(help="images in each timed run, rounded to full batches  [default: about 1 s of computation]")
    ] = None,
    rounds: Annotated[int, Flag(help="timed runs of each stage; the stages take turns")] = 10,
    peers: Annotated[
        bool, Flag("--peers", help="also measure the installed peers: pytorch-grad-cam, torch-cam, MONAI, captum")
    ] = False,
    trace: Annotated[Path | None, Flag(help="JSON file for a Chrome trace (Perfetto) of one pass")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        Flag(help="measure nothing; show what changed between two profiles, OLD and NEW", metavar="OLD NEW"),
    ] = None,
    out: Annotated[Path, Flag(help="folder of the profiles; each is a Parquet file and a PNG")] = Path("profiles"),
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
            raise BenchError(f"{name} {value}: must be at least 1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the tracer reports a missing GPU as an error
    from egal_bench.config import resolve
    from egal_bench.models.devices import chosen_device, device_kind
    from egal_bench.profiling.profile import profile as measure
    from egal_bench.profiling.report import as_json as json_of
    from egal_bench.profiling.report import draw_stages, stage_table
    from egal_shards.threads import cores

    fields = {"threads": cores()} | {name: value for name, value in flags.items() if value is not None}
    if shards is None:
        on_gpu = device_kind(chosen_device(resolve(fields).device)) == "cuda"
        fields = {"size": SIZE, "phantom_samples": CUDA_SAMPLES if on_gpu else SAMPLES} | fields
    else:
        fields |= {"shards": (shards,)}
    result = measure(resolve(fields), out, batch=batch, samples=samples, rounds=rounds, with_peers=peers, trace=trace)
    picture = result.path.with_suffix(".png")
    draw_stages(result, picture)
    print_table(stage_table(result), WIDTH)
    print(f"Table: {result.path}\nPicture: {picture}")
    if trace:
        print(f"Trace: {trace} (open in ui.perfetto.dev)")
    if as_json:
        print_json(json_of(result))


def _compare(old: Path, new: Path, as_json: bool) -> None:
    """Show what changed between two profiles."""
    from egal_bench.profiling.changes import changes, changes_table
    from egal_bench.profiling.measurements import load

    difference = changes(load(old), load(new))
    print_table(changes_table(difference), WIDTH)
    if as_json:
        print_json({"changes": difference.rows.to_dict("records"), "different": difference.different})


def _batch(text: str | None) -> int | Literal["auto"] | None:
    """Return the value of --batch-size."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isdecimal() or not int(text):
        raise BenchError(f"--batch-size {text}: must be a number of images, or auto")
    return int(text)


def profile_command() -> Callable[..., None]:
    """Return `profile` with the flags that it shares with `compare`."""
    defaults = {
        "threads": "every core", "size": "that of the shard set; phantom: 224",
        "phantom_samples": f"{SAMPLES}, on a GPU {CUDA_SAMPLES}",
    }  # fmt: skip
    return command_of(profile, [*own_parameters(profile), *config_options(FIELDS, defaults)])

"""`egal-bench score`: its flags and its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option as Flag

from egal_bench.cli.flags import command_of, config_options, own_parameters
from egal_bench.cli.output import Json, counted_noun, print_json
from egal_bench.errors import BenchError

FIELDS = (
    "lambda_", "convex_lambda", "normalise", "empty_roi", "device", "compile", "engine", "ray_address", "gpus_per_run",
    "memory_per_run",
)  # fmt: skip
WORKERS = "CPU cores / --threads, or 1 on a GPU"
CANDIDATES = "20 for each sample of --top, at least 10000"


def score(
    *,
    shards: Annotated[list[str], typer.Argument(help="shard sets of the pool, folders or URLs; labels are not read")],
    network: Annotated[
        Path,
        Flag(help="trained network: a network.safetensors of `compare --save-network`, or a folder that holds one"),
    ],
    out: Annotated[Path, Flag(help="folder of the scores and of the query; the same command resumes there")],
    strategy: Annotated[str, Flag(help="acquisition strategy: a name of `egal-bench list strategies`")] = "egal",
    top: Annotated[int, Flag(help="samples to choose")] = 1000,
    candidates: Annotated[
        int | None,
        Flag(
            help="samples that a strategy that reads features (badge, kcenter, …) chooses among: the best ones by "
            f"entropy  [default: {CANDIDATES}]"
        ),
    ] = None,
    labelled: Annotated[
        Path | None,
        Flag(help="keys of samples that have a label, which are left out: a CSV with a column `key`, or one per line"),
    ] = None,
    seed: Annotated[int, Flag(help="seed of the order of equal scores, and of strategies that draw at random")] = 0,
    backbone: Annotated[
        str | None,
        Flag(help="`module:factory`, only where the trunk of the network is code of your own, which is then run"),
    ] = None,
    threads: Annotated[
        int, Flag(help="CPU threads of each process; sums depend on their number in the last digit", metavar="N")
    ] = 1,
    workers: Annotated[
        int | None,
        Flag(help=f"shards scored at a time, each in a process of its own  [default: {WORKERS}]", metavar="N"),
    ] = None,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Score a pool of any size with a trained network, and write which samples to annotate next."""
    from egal_bench.config import resolve

    flags |= {"threads": threads, "workers": workers}
    config = resolve({name: value for name, value in flags.items() if value is not None})
    from egal_bench.querying.query import Request, run_query

    request = Request(
        tuple(shards), network, out, strategy, top, config, candidates, labelled, seed, backbone
    )  # fmt: skip
    result = run_query(request)
    print((out / "summary.txt").read_text(encoding="utf-8"), end="")
    print(f"Query: {out / 'query.csv'} ({result.seconds:.0f} s)")
    if as_json:
        print_json({
            "out": str(out), "strategy": result.strategy, "chosen": result.chosen, "samples": result.samples,
            "labelled": result.labelled, "unknown_keys": result.unknown, "damaged": result.damaged,
            "seconds": round(result.seconds, 2),
        })  # fmt: skip
    if result.damaged:
        raise BenchError(
            f"{counted_noun(len(result.damaged), 'shard')} could not be scored, so the query lacks their samples: "
            f"{', '.join(list(result.damaged)[:5])}; fix what summary.txt says of them, then the same command adds them"
        )


def score_command() -> Callable[..., None]:
    """Return `score` with the flags that it shares with `compare`."""
    return command_of(score, [*own_parameters(score), *config_options(FIELDS)])

"""A query: score every shard of a pool with one network, and write which samples to annotate next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from egal_bench.config import Config
from egal_bench.console import console, counted, say
from egal_bench.errors import BenchError, Interrupted
from egal_bench.models.backbones import source_digest
from egal_bench.models.devices import chosen_device
from egal_bench.models.inference import chosen_compile, inference_network
from egal_bench.models.precision import chosen_precision
from egal_bench.models.process import prepare_process
from egal_bench.models.saving import SavedNetwork, load_network
from egal_bench.querying.choosing import Chooser, Chosen
from egal_bench.querying.labelled_keys import read_keys
from egal_bench.querying.modes import check_usable
from egal_bench.querying.network_place import network_file
from egal_bench.querying.pools import PoolSet, described, pool_sets, scored_parts, work_of
from egal_bench.querying.query_files import QueryTable, write_json, write_text
from egal_bench.querying.query_folder import check_out
from egal_bench.querying.score_files import State, state_of, told_of_full_disk
from egal_bench.querying.shard_task import ShardTask
from egal_bench.querying.sheet import write_sheet
from egal_bench.querying.survey import Survey, survey
from egal_bench.querying.workers import Outcome, Work, outcomes
from egal_bench.runs.comparison import workers_of
from egal_bench.runs.local_engine import load_ahead
from egal_bench.strategies import BoundStrategy, find
from egal_bench.tables.environment import hardware
from egal_bench.tables.locks import POLL, locked
from egal_shards import ShardSet
from egal_shards.urls import redacted, shown


@dataclass(frozen=True)
class Request:
    """What a query is asked for.

    Attributes:
        shards: shard sets, folders or URLs.
        network: the file of a network, or the folder of a comparison that holds exactly one.
        out: folder of the results.
        strategy: specification of the strategy.
        top: samples to choose.
        config: gives the device, threads, workers and the parameters that the specification leaves out.
        candidates: candidates of a set-wise strategy; None: 20 per sample that is chosen, at least 10,000.
        labelled: file with the keys of labelled samples; None: no sample has a label.
        seed: seed of the order of ties and of random draws.
        backbone: `module:factory` where the network has a trunk of the user's own.
    """

    shards: tuple[str, ...]
    network: Path
    out: Path
    strategy: str
    top: int
    config: Config
    candidates: int | None = None
    labelled: Path | None = None
    seed: int = 0
    backbone: str | None = None


@dataclass(frozen=True)
class QueryResult:
    """What a query has written.

    Attributes:
        out: folder of the results.
        strategy: canonical specification of the strategy.
        chosen: number of samples in the query.
        samples: pool samples without a label that were ranked.
        labelled: labelled samples that were left out.
        unknown: keys of labelled samples that lie in no shard that was scored.
        damaged: what is wrong with each shard that could not be scored, by its name.
        seconds: wall time.
    """

    out: Path
    strategy: str
    chosen: int
    samples: int
    labelled: int
    unknown: int
    damaged: dict[str, str]
    seconds: float


def run_query(request: Request) -> QueryResult:
    """Score the shards that are not scored yet, and write the query to the folder `out`.

    Raises:
        BenchError: a mistake in the request, before anything is scored; no shard could be scored; the disk is full.
        ShardError: the manifest or the index of a set is damaged.
        Interrupted: Ctrl-C; the scores of finished shards are kept.
    """
    start = perf_counter()
    _check_counts(request)
    check_out(request.out)
    strategy = find(request.strategy, request.config)
    check_usable(strategy)
    keys = read_keys(request.labelled) if request.labelled else frozenset()
    prepare_process()
    if workers_of(request.config, "cpu") > 1:
        load_ahead("finetune")
    file = network_file(request.network)
    network, device = load_network(file, request.backbone), chosen_device(request.config.device)
    config = _settings(request, network, device)
    sets = pool_sets(
        request.shards, request.out, file, network, request.backbone, device, config.precision, config.compile,
        config.threads,
        source_digest(config.backbone),
    )  # fmt: skip
    _check_rois(strategy, sets, request)
    tasks = [task for pool in sets for task in pool.tasks]
    with told_of_full_disk(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
    with _hand_out(request.config.model_copy(update={"device": device}), device, request.out) as hand_out:
        damaged = _scored(sets, hand_out, request.out)
    complete = [task for task in tasks if task.name not in damaged]
    parts = partial(scored_parts, complete, keys)
    overview = survey(parts())
    if "labelled-roi" in strategy.needs and not overview.labelled_with_roi:
        raise BenchError(f"--labelled {request.labelled}: names no sample of {described(sets)} that has an ROI")
    uncompiled = inference_network(network.network.to(device), device, config.precision)  # few samples are left
    chooser = Chooser(
        strategy, config, request.candidates, request.seed, replace(network, network=uncompiled), device, sets,
        overview, parts,
    )  # fmt: skip
    chosen = chooser.choose()
    if chosen is None:
        raise BenchError(f"no sample is left to choose: {_why_none(damaged, overview)}")
    result = QueryResult(
        request.out, strategy.name, len(chosen.scores), overview.samples, len(overview.labelled_keys),
        len(keys - overview.labelled_keys), damaged, perf_counter() - start,
    )  # fmt: skip
    with locked(request.out, "query"):
        QueryTable.of(chosen, sets, network.classes).write(request.out)
        write_sheet(chosen, chooser, request.out / "contact_sheet.png")
        write_json(request.out / "environment.json", _environment(request, file, chooser))
        write_text(request.out / "summary.txt", summary(result, chosen, request, sets))
    return result


def _check_counts(request: Request) -> None:
    if request.top < 1:
        raise BenchError(f"--top {request.top}: must be at least 1")
    if request.candidates is not None and request.candidates < request.top:
        raise BenchError(f"--candidates {request.candidates}: must be at least --top, {request.top}")
    if not 0 <= request.seed < 2**32:
        raise BenchError(f"--seed {request.seed}: must be from 0 to 2**32 - 1")


def _settings(request: Request, network: SavedNetwork, device: str) -> Config:
    """Return the settings with which the network was trained, and those of the request that a query may choose."""
    own = ("device", "threads", "workers", "lambda_", "convex_lambda", "normalise", "empty_roi")
    chosen = {name: getattr(request.config, name) for name in own}
    images = sum(file.samples for where in request.shards for file in ShardSet.without_index(where).manifest.shards)
    side, threads = network.network.size or network.image_size, request.config.threads
    decided = {
        "precision": chosen_precision(network.config.precision, device),
        "compile": chosen_compile(request.config.compile, device, images, side, threads),
    }
    return network.config.model_copy(update=chosen | decided | {"device": device, "budget": request.top})


def _check_rois(strategy: BoundStrategy, sets: Sequence[PoolSet], request: Request) -> None:
    """Raise BenchError where the strategy reads ROIs that cannot be there."""
    if "roi" in strategy.needs and not any(pool.with_roi for pool in sets):
        raise BenchError(
            f"--strategy {strategy.name}: reads the ROI of pool samples, and no sample of {described(sets)} has one; "
            "choose a strategy that reads none, such as entropy"
        )
    if "labelled-roi" in strategy.needs and not request.labelled:
        raise BenchError(
            f"--strategy {strategy.name}: learns from the ROIs of labelled samples; name samples of SHARDS that have "
            "one with --labelled"
        )


HandOut = Callable[[Iterable[Work], int], Iterator[tuple[ShardTask, Outcome, str]]]


@contextmanager
def _hand_out(config: Config, device: str, out: Path) -> Iterator[HandOut]:
    """Yield the function that hands out shards, given with their number, as `config.engine` asks."""
    if config.engine == "local":
        yield lambda work, shards: outcomes(work, min(workers_of(config, device), shards))
        return
    from egal_bench.querying.ray_workers import outcomes_on_ray
    from egal_bench.runs.ray_engine import connected

    with connected(config, out) as engine:
        engine.require_capacity()
        engine.check_versions()
        yield lambda work, shards: outcomes_on_ray(work, engine)


def _scored(sets: Sequence[PoolSet], hand_out: HandOut, out: Path) -> dict[str, str]:
    """Score the shards that are not scored yet; return what is wrong with each damaged one, by its name."""
    tasks = [task for pool in sets for task in pool.tasks]
    states = {task: state_of(task) for task in tasks}
    complete = [task for task, state in states.items() if state is State.COMPLETE]
    if complete:
        say(f"{len(complete)} of {len(tasks)} shards are already scored in {out}: skipped")
    if recomputed := sum(state is State.DAMAGED for state in states.values()):
        say(f"{recomputed} of {len(tasks)} shards have a damaged file of scores: scored again")
    damaged: dict[str, str] = {}
    pending = [task for task in tasks if states[task] is not State.COMPLETE]
    try:
        with counted("scoring", sum(task.file.samples for task in pending)) as advance:
            progress, waiting = _Progress(len(pending), advance), False
            while pending:
                elsewhere = []
                for task, outcome, message in hand_out(work_of(sets, pending), len(pending)):
                    if outcome is Outcome.ELSEWHERE:
                        elsewhere.append(task)
                        continue
                    if outcome is Outcome.DAMAGED:
                        damaged[task.name] = redacted(message)
                        say(f"{task.name} cannot be scored: {damaged[task.name]}")
                    progress.finished(task)
                if elsewhere and len(elsewhere) == len(pending):
                    if not waiting:
                        say(f"waiting for shards that another process scores in {out}")
                    waiting = True
                    time.sleep(POLL)
                pending = elsewhere
    except KeyboardInterrupt:
        done = sum(task.path.is_file() for task in tasks)
        raise Interrupted(
            f"interrupted: {done} of {len(tasks)} shards are scored in {out}; the same command resumes"
        ) from None
    return damaged


class _Progress:
    """The progress bar, and one line per tenth of the shards where stderr is not a terminal."""

    def __init__(self, shards: int, advance: Any) -> None:
        self._shards, self._advance, self._finished, self._start = shards, advance, 0, perf_counter()

    def finished(self, task: ShardTask) -> None:
        """Count a shard as finished."""
        self._advance(task.file.samples)
        before, self._finished = self._finished, self._finished + 1
        if not console.is_terminal and self._finished * 10 // self._shards > before * 10 // self._shards:
            left = (perf_counter() - self._start) / self._finished * (self._shards - self._finished)
            minutes, seconds = divmod(round(left), 60)
            say(f"{self._finished} of {self._shards} shards scored, about {minutes} min {seconds:02} s left")


def _why_none(damaged: dict[str, str], overview: Survey) -> str:
    if damaged:
        first, *others = damaged
        more = f", nor can {len(others)} other{'s' * (len(others) != 1)}" if others else ""
        return f"{first} cannot be scored{more}: {damaged[first]}"
    return "every pool sample is labelled" if overview.labelled else "the sets have no pool samples"


def _environment(request: Request, file: Path, chooser: Chooser) -> dict[str, Any]:
    """Return where the numbers come from: versions, machine, network and data, without secrets of URLs."""
    config = chooser.config
    pools = {pool.name: {"shards": shown(pool.where), "manifest_sha256": pool.manifest} for pool in chooser.sets}
    return hardware(chooser.device) | {
        "network": {"file": str(file), "sha256": chooser.network.digest, "backbone": config.backbone},
        "strategy": chooser.strategy.name, "top": request.top, "candidates": request.candidates, "seed": request.seed,
        "precision": config.precision, "compile": config.compile, "threads": config.threads, "pools": pools,
    }  # fmt: skip


def summary(result: QueryResult, chosen: Chosen, request: Request, sets: Sequence[PoolSet]) -> str:
    """Return the text of summary.txt."""
    lines = [
        f"{result.chosen} samples to annotate next, by {result.strategy}: query.csv, query.parquet, contact_sheet.png",
        f"Ranked: {result.samples} pool samples of {described(sets)}. {chosen.note}",
        "Labels of ranked samples are not read, and samples of a test set are never ranked.",
    ]
    if request.labelled:
        lines.append(f"Left out: {result.labelled} labelled sample{'s' * (result.labelled != 1)}.")
    if result.chosen < request.top:
        lines.append(f"--top {request.top} asks for more samples than there are, so the query is the whole pool.")
    if result.unknown:
        keys = "1 key of --labelled lies" if result.unknown == 1 else f"{result.unknown} keys of --labelled lie"
        lines.append(f"{keys} in no shard that was scored.")
    for name, message in result.damaged.items():
        lines.append(f"Not scored, so not in the query: {name}: {message}")
    return "".join(f"{line}\n" for line in lines)

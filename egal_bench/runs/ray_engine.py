"""Runs on a Ray cluster: each run is a task, and a run whose worker or node is lost goes on elsewhere.

Workers send their rounds to this process, the driver, which alone writes results. When a worker is lost, its run is
submitted again with the rounds that have arrived, as an interrupted comparison continues; the numbers are the same.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from egal_bench.config import Config
from egal_bench.console import say
from egal_bench.errors import BenchError, Defect, brief
from egal_bench.runs import ray_worker
from egal_bench.runs.events import Event, RoundDone
from egal_bench.runs.messages import event_of
from egal_bench.runs.ray_worker import Driver
from egal_bench.runs.task import History, Task
from egal_bench.tables.schemas import SCHEMAS
from egal_shards.threads import cores
from egal_shards.urls import is_url

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise BenchError(f"--engine ray: {brief(error)}; pip install 'egal-bench[ray]'") from None

AHEAD = 2  # runs that are submitted for each run that the cluster can hold, so that no worker waits for this process
STARTS = 3  # attempts to start a cluster: on a busy machine Ray gives up after 15 s, and the next attempt is faster
LOSSES = 3  # workers that may be lost in a row without a finished round in between
POLL = 10.0  # seconds between two looks at a cluster that reports nothing
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # otherwise Ray prints notices


@contextmanager
def connected(config: Config, results: Path) -> Iterator[RayEngine]:
    """Connect to the cluster at `config.ray_address`, or start one on this machine; yield the engine.

    A cluster that was started here ends with the block. Where this process is connected already, the connection is
    used and stays.

    Args:
        config: as the user gave it; device and precision are still to be resolved.
        results: the folder of the results.

    Raises:
        BenchError: there is no such cluster, or it runs other versions of Ray or Python.
    """
    with ExitStack() as cleanup:
        if not ray.is_initialized():
            cleanup.enter_context(silence())
            _connect(config)
            cleanup.callback(ray.shutdown)
        yield RayEngine(config, Driver(Path.cwd(), results.resolve()), _gpus(config))


def _connect(config: Config) -> None:
    where: dict[str, Any] = {"address": config.ray_address}
    if config.ray_address is None:
        places = config.workers or max(1, cores() // config.threads)
        # "local", since RAY_ADDRESS would otherwise choose a cluster that the user has not named
        where = {"address": "local", "num_cpus": places * config.threads, "include_dashboard": False}
    for attempt in range(STARTS):
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises plain Exception, ConnectionError, RuntimeError and others
            ray.shutdown()
            if config.ray_address is None and attempt < STARTS - 1:
                continue
            name = f"--ray-address {config.ray_address}" if config.ray_address else "--engine ray"
            raise BenchError(f"{name}: cannot connect to Ray ({brief(error)}); see docs/cluster.md") from error


@contextmanager
def silence() -> Iterator[None]:
    """Keep Ray's own messages off the terminal, and this process's arguments out of Ray's records.

    Ray prints the loss of a worker, which the engine handles, on stdout. It also records the command line of each
    driver, which may hold the URL of a shard set with a password. Neither has a setting.
    """
    with ExitStack() as undo:
        for name in QUIET.keys() - os.environ.keys():
            os.environ[name] = QUIET[name]
            undo.callback(os.environ.pop, name, None)
        for module, function, substitute in (
            ("worker", "print_to_stdstream", lambda *_, **__: None),
            ("utils", "get_entrypoint_name", lambda: "egal-bench"),
        ):
            owner = getattr(ray._private, module)
            if hasattr(owner, function):
                undo.callback(setattr, owner, function, getattr(owner, function))
                setattr(owner, function, substitute)
        yield


def _gpus(config: Config) -> float:
    """Return the share of a GPU that a run reserves."""
    if ":" in config.device:
        raise BenchError(f"--device {config.device}: with --engine ray, Ray chooses the GPU; give --device cuda")
    if config.device not in ("auto", "cuda"):
        return 0.0
    if config.device == "cuda" and config.gpus_per_run == 0:
        raise BenchError("--gpus-per-run 0: --device cuda needs a share of a GPU; raise it, or give --device cpu")
    if config.gpus_per_run is not None:
        return config.gpus_per_run
    return float(config.device == "cuda" or ray.cluster_resources().get("GPU", 0) > 0)


@dataclass
class RayEngine:
    """Executes runs as tasks of the Ray cluster to which this process is connected.

    Args:
        config: gives what a run reserves, and the number of runs at a time.
        driver: where this process is.
        gpus: share of a GPU that a run reserves.
    """

    config: Config
    driver: Driver
    gpus: float

    def __post_init__(self) -> None:
        memory = int((self.config.memory_per_run or 0) * 2**30)
        self._needs = {"CPU": float(self.config.threads), "GPU": self.gpus, "memory": float(memory)}
        self._needs = {name: amount for name, amount in self._needs.items() if amount}
        self._resources: dict[str, Any] = {"num_cpus": self.config.threads, "num_gpus": self.gpus, "max_retries": 0}
        if memory:
            self._resources["memory"] = memory
        self._checked: frozenset[str] = frozenset()

    def resolved(self) -> Config:
        """Return the config with the device and the precision that "auto" stands for where a run executes."""
        if not self.gpus and self.config.device == "auto" and ray.cluster_resources().get("GPU"):
            self.config = self.config.model_copy(update={"device": "cpu"})  # a GPU that is not reserved is not used
        self.require_capacity()
        function = ray.remote(**self._resources)(ray_worker.resolved_on_node)
        return self._get(function.remote(self.config, self.driver), "a node of the Ray cluster")

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Check on each node the versions of the software, and data, weights and the user's own code.

        Raises:
            BenchError: they differ from those of this process, or are absent; the message names the node.
        """
        nodes = self.check_versions()
        distinct = {(task.shards, task.run.strategy): self._portable(replace(task, history=None)) for task in tasks}
        for name, what in self._on_each(nodes, ray_worker.difference_on_node, list(distinct.values()), self.driver):
            if what:
                raise BenchError(
                    f"node {name}: {what}; give every node the same files at the same path, or the shard set by URL"
                )
        self._checked = frozenset(nodes)

    def check_versions(self) -> dict[str, str]:
        """Return the names of the nodes that can hold a run, by id. Raises BenchError where their software differs."""
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in _nodes() if _places(node, self._needs)}
        expected = ray_worker.versions()
        for name, installed in self._on_each(nodes, ray_worker.versions):
            if differing := [
                f"{what} {installed[what]} (here {expected[what]})"
                for what in expected
                if installed.get(what) != expected[what]
            ]:
                raise BenchError(f"node {name} has {', '.join(differing)}: install the same versions on every node")
        return nodes

    def execute(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """Yield the events of all tasks; see `Engine.execute`.

        An error, an interrupt or the end of the iteration cancels the runs.
        """
        remaining = iter(tasks)
        running: dict[Any, _Attempt] = {}  # by the stream of messages of each attempt
        try:
            while True:
                while len(running) < self._limit() and (task := next(remaining, None)) is not None:
                    running[self._submit(task)] = _Attempt(task)
                if not running:
                    return
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL, fetch_local=False)
                if not ready:
                    self.require_capacity()
                    continue
                attempt = running[ready[0]]
                try:
                    message = ray.get(next(ready[0]))
                except RayTaskError as error:  # a run reports its exceptions itself, so this one is not of the run
                    raise Defect(f"{attempt.task.run}: {_last_line(error)}") from error
                except (RayError, StopIteration) as error:
                    del running[ready[0]]
                    _cancel(ready[0])
                    running[self._submit(attempt.resumed(error))] = attempt
                    continue
                event = event_of(message, attempt.task)
                if isinstance(event, RoundDone):
                    attempt.add(event)
                else:
                    del running[ready[0]]
                yield event
        finally:
            for stream in running:
                _cancel(stream)

    def _submit(self, task: Task) -> Any:
        """Return the stream of messages of a new attempt to execute `task`."""
        function = ray.remote(**self._resources, num_returns="streaming")(_messages)
        return function.remote(self._portable(task), self.driver, self._checked)

    def _portable(self, task: Task) -> Task:
        """Return `task` with the absolute folders that it has in this process."""
        shards = task.shards if is_url(task.shards) else os.path.abspath(task.shards)
        return replace(task, shards=shards, scratch=task.scratch.resolve())

    def actor(self, kind: type) -> Any:
        """Return a new actor of the class `kind`, which reserves what a run reserves."""
        resources = {name: amount for name, amount in self._resources.items() if name != "max_retries"}
        return ray.remote(**resources)(kind).remote(self.driver)

    def places(self) -> int:
        """Return how many runs or actors the cluster holds at a time, at most `--workers`; at least 1."""
        places = max(1, sum(_places(node, self._needs) for node in _nodes()))
        return min(self.config.workers or places, places)

    def _limit(self) -> int:
        """Return how many runs may be submitted at a time; it follows a cluster that grows or shrinks."""
        return self.config.workers or AHEAD * self.places()

    def require_capacity(self) -> None:
        """Raise BenchError unless some node can hold a run."""
        if not any(_places(node, self._needs) for node in _nodes()):
            needs = ", ".join(f"{amount:g} {name}" for name, amount in self._needs.items())
            raise BenchError(
                f"no node of the Ray cluster can hold a run ({needs}): lower --threads, --gpus-per-run or "
                "--memory-per-run, or add nodes; finished rounds are kept"
            )

    def _on_each(self, nodes: Mapping[str, str], function: Any, *arguments: Any) -> list[tuple[str, Any]]:
        """Return (name of the node, what the function returns there) for each node of `nodes`, names by id.

        A node that is lost meanwhile is left out.
        """
        remote = ray.remote(num_cpus=0)(function)
        results = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)
            for node in nodes
        ]
        answers = []
        for name, result in zip(nodes.values(), results, strict=True):
            with suppress(_Lost):
                answers.append((name, self._get(result, f"node {name}")))
        return answers

    def _get(self, result: Any, where: str) -> Any:
        """Return the value of a remote call before the grid starts; `where` names the node in messages."""
        try:
            return ray.get(result)
        except RayTaskError as error:
            raise BenchError(
                f"{where} cannot execute egal-bench ({_last_line(error)}): install the same version on every node"
            ) from error
        except RayError as error:
            raise _Lost(f"the Ray cluster has lost a node before the grid started: {brief(error)}") from error


class _Lost(BenchError):
    """A node was lost before the grid started."""


@dataclass
class _Attempt:
    """The attempts to execute one run.

    Attributes:
        task: as the caller gave it.
    """

    task: Task

    def __post_init__(self) -> None:
        history = self.task.history
        self._tables = {table: list(history.tables.get(table, ())) if history else [] for table in SCHEMAS}
        self._files: Mapping[str, bytes] = history.files if history else {}
        self._losses = 0

    def add(self, event: RoundDone) -> None:
        """Keep a finished round for the next attempt."""
        for table, rows in event.tables.items():
            self._tables[table] += rows
        self._files, self._losses = event.files, 0

    def resumed(self, error: Exception) -> Task:
        """Return the task that continues after the last finished round, since a worker was lost.

        Raises:
            BenchError: too many workers have been lost since that round.
        """
        self._losses += 1
        if self._losses >= LOSSES:
            raise BenchError(
                f"{self.task.run}: {self._losses} workers were lost in the same round (out of memory?; "
                f"{brief(error)}); finished rounds are kept: run again with fewer runs per node by --threads, "
                "--gpus-per-run or --memory-per-run"
            ) from error
        say(f"{self.task.run}: its worker was lost ({type(error).__name__}); the run goes on in another one")
        return replace(self.task, history=History(self._tables, self._files) if self._tables["rounds"] else None)


def _messages(task: Task, driver: Driver, checked: frozenset[str]) -> Iterator[Any]:
    """Yield the messages of `task` from a worker."""
    node = ray.get_runtime_context().get_node_id()
    yield from ray_worker.messages_on_node(task, driver, checked=node in checked)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _places(node: Mapping[str, Any], needs: Mapping[str, float]) -> int:
    """Return how many runs with these needs a node holds at a time."""
    resources = node["Resources"]
    return min(math.floor(resources.get(name, 0) / amount + 1e-9) for name, amount in needs.items())


def _cancel(stream: Any) -> None:
    """Interrupt a run. Its process stays for the next run, and ends at the latest when this process disconnects."""
    with suppress(RayError, ValueError):  # it has ended meanwhile
        ray.cancel(stream)


def _last_line(error: Exception) -> str:
    """Return the last line of a remote exception: its type and message, after the traceback."""
    return str(error).strip().splitlines()[-1]

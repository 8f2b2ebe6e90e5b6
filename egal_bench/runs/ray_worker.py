"""What a node of a Ray cluster executes: the checks before the grid starts, and the runs. Nothing here imports Ray."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from egal_bench.config import Config
from egal_bench.errors import BenchError, brief
from egal_bench.models.process import prepare_process
from egal_bench.runs.engine import USER_ERRORS
from egal_bench.runs.events import RunDone
from egal_bench.runs.grid import compute_features, network_of, resolved
from egal_bench.runs.identity import settings_of
from egal_bench.runs.messages import Message, failure_of, messages_of
from egal_bench.runs.run import find_for
from egal_bench.runs.task import Task
from egal_bench.runs.workspace import Workspace
from egal_bench.tables.environment import commit
from egal_bench.tables.settings import difference

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "numba", "timm")  # those that can change a number


@dataclass(frozen=True)
class Driver:
    """The place of the process that hands out the tasks and writes the results.

    Attributes:
        folder: its working folder, which a node enters where it has one of this name.
        results: the folder of the results, resolved.
    """

    folder: Path
    results: Path

    def enter(self) -> None:
        """Enter the driver's working folder where this node has it, so that relative paths and modules are found."""
        if self.folder.is_dir():
            os.chdir(self.folder)

    def on_node(self, path: Path) -> Path:
        """Return `path`, beside or in the results, if this node sees these, else its counterpart in a local cache."""
        beside = self.results.parent
        if self.results.is_dir() and os.access(beside, os.W_OK):
            return path
        local = Path(os.environ.get("EGAL_CACHE") or Path.home() / ".cache" / "egal-bench")
        return local.absolute() / "nodes" / path.relative_to(beside)


def versions() -> dict[str, str]:
    """Return the versions of what decides the numbers of a run, by name."""
    return {
        "python": platform.python_version(),
        "egal-bench": f"{version('egal-bench')} (commit {commit() or 'unknown'})",
        **{name: _version(name) for name in PACKAGES},
    }


def resolved_on_node(config: Config, driver: Driver) -> Config:
    """Return `config` with the device and the precision that "auto" stands for on this node."""
    driver.enter()
    return resolved(config)


def difference_on_node(tasks: Sequence[Task], driver: Driver) -> str | None:
    """Return what is absent or different on this node of what decides the numbers of the tasks; None: nothing."""
    driver.enter()
    for task in tasks:
        try:
            dataset = _workspace().dataset(task.shards)
            settings = settings_of(task.config, dataset, find_for(task), network_of(task.config, dataset)[1])
        except USER_ERRORS as error:
            return str(error)
        if differing := difference(task.settings, settings):
            return f"{task.run.dataset}, {task.run.strategy}: {', '.join(differing)}"
    return None


def messages_on_node(task: Task, driver: Driver, *, checked: bool) -> Iterator[Message]:
    """Execute `task` on this node; see `messages_of`.

    Args:
        task: with absolute folders.
        driver: the sender.
        checked: whether this node was in the cluster when the nodes were checked; otherwise it is checked now.
    """
    driver.enter()
    prepare_process()
    features = driver.on_node(task.features) if task.features else None
    task = replace(task, features=features, scratch=driver.on_node(task.scratch))
    try:
        if not checked and (what := difference_on_node([task], driver)):
            raise BenchError(f"node {platform.node()}, which has joined the cluster since: {what}")
        if features is not None:
            _ensure_features(task, features)
    except Exception as error:
        yield failure_of(task, error)
        return
    for message in messages_of(task, _workspace()):
        if message[0] is RunDone:
            shutil.rmtree(task.scratch, ignore_errors=True)
        yield message


@cache
def _workspace() -> Workspace:
    """Return the workspace of this process, which Ray uses for one run after another."""
    return Workspace()


_complete_features: set[Path] = set()  # folders that this process has checked


def _ensure_features(task: Task, folder: Path) -> None:
    """Compute the features of the frozen trunk into `folder`, unless another process has."""
    if folder not in _complete_features:
        folder.parent.mkdir(parents=True, exist_ok=True)
        dataset = _workspace().dataset(task.shards)
        compute_features(task.config, dataset, network_of(task.config, dataset)[0], folder)
        _complete_features.add(folder)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        return f"absent ({brief(error)})"

"""What a run needs, small enough to send to another process or machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from egal_bench.config import Config
from egal_bench.tables.folder import RunName, RunTables
from egal_bench.tables.settings import digest

# One independent random stream each, the same for every strategy
STREAMS = ("pool", "model", "query", "loader", "ties")


@dataclass(frozen=True, eq=False)
class History:
    """The rounds of a run that are finished already.

    Attributes:
        tables: their rows.
        files: content by name of the files of the last round; see `RoundDone`.
    """

    tables: RunTables
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def last_round(self) -> int:
        """Return the number of the last finished round."""
        return self.tables["rounds"][-1]["round"]


@dataclass(frozen=True, eq=False)
class Task:
    """One strategy with one seed on one data set.

    Attributes:
        run: the data set, the canonical specification of the strategy, and the seed of all random streams.
        shards: folder or URL of the shard set.
        config: the settings of the comparison, with device and precision resolved.
        settings: everything that decides the numbers of the run, but for the seed; see `identity.settings_of`.
        features: folder of the cached features; None in the finetune regime.
        scratch: folder for what an interrupted pass need not compute again.
        history: the rounds that are finished already; None: there are none.
        modules: the user's modules to import first, which register the strategy under a name of its own.
    """

    run: RunName
    shards: str
    config: Config
    settings: Mapping[str, Any]
    features: Path | None
    scratch: Path
    history: History | None = None
    modules: tuple[str, ...] = ()

    @property
    def config_hash(self) -> str:
        """Return the digest of the settings."""
        return digest(self.settings)

    def streams(self) -> dict[str, np.random.SeedSequence]:
        """Return the independent random streams of the run, by the names of STREAMS."""
        return dict(zip(STREAMS, np.random.SeedSequence(self.run.seed).spawn(len(STREAMS)), strict=True))


def round_generator(stream: np.random.SeedSequence, round_: int) -> np.random.Generator:
    """Return the Generator of `stream` for one round, so that a round draws the same however a run got there."""
    return np.random.default_rng([*stream.generate_state(4), round_])

"""What a run needs, small enough to send to another process or machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egal_bench.config import Config

STREAMS = ("pool", "model", "query", "loader")  # one independent random stream each, the same for every strategy

RunTables = dict[str, list[dict[str, Any]]]  # rows of each table, without the columns that name the run


@dataclass(frozen=True)
class Task:
    """One strategy with one seed on one data set.

    Attributes:
        shards: folder or URL of the shard set.
        dataset: its name.
        strategy: the canonical specification of the strategy.
        seed: of all random streams of the run.
        config: the settings of the comparison, with device and precision resolved.
        config_hash: the identity of the run.
        features: folder of the cached features; None in the finetune regime.
        scratch: folder for what an interrupted run need not compute again.
    """

    shards: str
    dataset: str
    strategy: str
    seed: int
    config: Config
    config_hash: str
    features: Path | None
    scratch: Path

    @property
    def label(self) -> str:
        """Return the name of the run for messages."""
        return f"{self.dataset}, {self.strategy}, seed {self.seed}"

    def streams(self) -> dict[str, np.random.SeedSequence]:
        """Return the independent random streams of the run, by the names of STREAMS."""
        return dict(zip(STREAMS, np.random.SeedSequence(self.seed).spawn(len(STREAMS)), strict=True))

"""One shard of a pool as a task: small enough to send to another process, and its file of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from egal_shards.manifest import ShardFile


@dataclass(frozen=True, eq=False)
class ShardTask:
    """What `score_shard` needs, besides the rows of the index, to score the pool samples of one shard.

    Attributes:
        out: folder of the results.
        pool: name of the shard set, unique among those of the command.
        shards: the shard set, a folder or URL.
        manifest: digest of its manifest, in hex.
        number: number of the shard in the set.
        first: position of its first sample in the set.
        file: the shard as the manifest describes it.
        network: file of the network.
        backbone: `module:factory` where the trunk of the network is the user's own code, else None.
        device: where the network runs.
        precision: precision of the trunk.
        compile: whether the trunk is compiled, "on" or "off".
        threads: CPU threads.
        settings: everything that decides the numbers of the scores, as a JSON-able dict.
    """

    out: Path
    pool: str
    shards: str
    manifest: str
    number: int
    first: int
    file: ShardFile
    network: Path
    backbone: str | None
    device: str
    precision: str
    compile: str
    threads: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the shard in messages and tables, such as `hospital/shard-000003.tar`."""
        return f"{self.pool}/{self.file.file}"

    @property
    def path(self) -> Path:
        """Return the path of the file of scores."""
        return self.out / "scores" / quote(self.pool, safe="") / f"{Path(self.file.file).stem}.parquet"

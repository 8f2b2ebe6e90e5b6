"""A comparison that is over in seconds, as flags and as a Config."""

from pathlib import Path

import pandas as pd

FLAGS = [
    "--backbone=small-cnn", "--phantom-samples=150", "--size=32", "--shortcut=0.9", "--strategies=random,entropy,egal",
    "--seeds=2", "--init=15", "--budget=10", "--rounds=2", "--steps=4", "--batch-size=16",
]  # fmt: skip


def tiny_config(shards, **settings):
    """Return the Config of one strategy and one seed on the shard set at `shards`, into the folder `out`."""
    from egal_bench.config import Config

    tiny = {"backbone": "small-cnn", "init": 15, "budget": 10, "rounds": 2, "steps": 2, "seeds": 1, "workers": 1}
    return Config(**{"shards": (str(shards),), "strategies": ("random",), "out": Path("out")} | tiny | settings)


def contents(out: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of a results folder without the columns that measure time."""
    from egal_bench.tables.results import load
    from egal_bench.tables.schemas import TIMINGS

    tables = load(out)
    return tables | {"rounds": tables["rounds"].drop(columns=list(TIMINGS))}

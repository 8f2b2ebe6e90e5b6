"""The description of a results folder: config.yaml, which repeats its comparisons, and environment.json."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from egal_bench.config import Config
from egal_bench.dataset import Dataset
from egal_bench.files import replacing
from egal_bench.tables.environment import environment
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.locks import locked
from egal_bench.tables.settings import comparable
from egal_shards.urls import shown

HEAD = """# The last comparison into this folder, as `egal-bench compare --config` reads it.
# `groups` lists every group of runs that the folder holds, with the settings that decided their numbers.
"""


def describe(folder: ResultsFolder, config: Config, datasets: Sequence[Dataset], settings: Mapping[str, Any]) -> None:
    """Write config.yaml, with every field as resolved and every group of runs in the folder, and environment.json."""
    fields: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude={"replace", "part"})
    fields["shards"] = [shown(path) for path in config.shards]  # without passwords and signatures
    fields["comparable"] = comparable(settings)
    fields["data"] = {dataset.name: dataset.shards.manifest.sha256 for dataset in datasets}
    record = environment(datasets, config.device, config.precision) | {"engine": config.engine}
    with locked(folder.path, "description"):
        fields["groups"] = _groups(folder)
        for name, text in (
            ("config.yaml", HEAD + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)),
            ("environment.json", json.dumps(record, indent=2) + "\n"),
        ):
            with replacing(folder.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _groups(folder: ResultsFolder) -> list[dict[str, Any]]:
    """Return one dict per data set, strategy and settings: these three, the seeds, and the last round."""
    seeds = defaultdict(list)
    records: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run, record in folder.records(damaged_raise=False).items():
        group = run.dataset, run.strategy, record["config_hash"]
        seeds[group].append(run.seed)
        records[group] = record
    return [
        {
            "dataset": dataset, "strategy": strategy, "seeds": seeds[dataset, strategy, hash_], "config_hash": hash_,
            "last_round": record["last_round"], "comparable": comparable(record["settings"]),
            "settings": record["settings"],
        }
        for (dataset, strategy, hash_), record in records.items()
    ]  # fmt: skip

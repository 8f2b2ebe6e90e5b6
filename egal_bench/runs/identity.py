"""The identity of a run: exactly the settings that decide its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egal_bench.config import NUMBERS, Config
from egal_bench.dataset import Dataset
from egal_bench.models.devices import device_kind
from egal_bench.parameters import STRATEGY_FIELDS
from egal_bench.strategies import BoundStrategy

# The fields of Config by what they decide; each field has exactly one place.
SCHEDULING = {  # which runs are executed, where, and what is kept of them
    "shards", "strategies", "seeds", "part", "rounds", "workers", "out", "replace", "keep", "save_network", "metric",
    "engine", "ray_address", "gpus_per_run", "memory_per_run",
}  # fmt: skip
DATA = {"phantom", "phantom_samples", "shortcut", "roi_area", "roi_noise"}  # covered by the manifest's digest
STRATEGY = set(STRATEGY_FIELDS)  # covered by the specification of a built-in strategy
EVERY_RUN = {
    "init", "budget", "regime", "head", "backbone", "weights", "size", "overlap", "threshold", "explain_convention",
    "precision", "compile", "device", "threads",
}  # fmt: skip
OF_NETWORK = {"learning_rate", "weight_decay", "explain_loss", "warm_start", "head_dropout", "cuda_graphs"}
OF_EPISODES = {"shots", "queries", "epochs", "episodes", "prototypes"}
OF_TRAINING = {  # by regime and head
    ("finetune", "linear"): OF_NETWORK | {"steps", "batch_size", "early_stop", "class_balance"},
    ("finetune", "prototypical"): OF_NETWORK | OF_EPISODES | {"explain_layer"},
    ("frozen", "linear"): {"l2"},
    ("frozen", "prototypical"): OF_EPISODES | {"learning_rate", "weight_decay"},
}


def settings_of(
    config: Config, dataset: Dataset, strategy: BoundStrategy, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return everything that decides the numbers of a run, but for its seed, as a JSON-able dict.

    The number of rounds is not part of it: a round does not depend on how many rounds follow.

    Args:
        config: with device and precision resolved.
        dataset: the shard set; the digest of its manifest covers images, labels, ROIs and the split.
        strategy: with its parameters.
        digests: "weights", and "backbone_source" for a backbone of the user's own.
    """
    settings = config.model_dump(mode="json", include=EVERY_RUN | OF_TRAINING[config.regime, config.head])
    settings |= {
        "numbers": NUMBERS,
        "data": dataset.shards.manifest.sha256,
        "device": device_kind(config.device),
        "strategy": strategy.name,
        "source": strategy.strategy.source_digest,
        **digests,
    }
    if strategy.strategy.source:  # a strategy that is not built in may read any of these from pool.config
        settings |= config.model_dump(mode="json", include=STRATEGY)
    return settings

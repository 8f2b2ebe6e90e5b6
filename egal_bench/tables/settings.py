"""The settings that decide the numbers of a run, as its tables record them: digest, comparison, differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from egal_bench.config import Config, flag_of
from egal_bench.parameters import STRATEGY_FIELDS

OF_STRATEGY = frozenset({"strategy", "source", *STRATEGY_FIELDS})  # comparable runs of one data set may differ in these
CHOSEN_BY_AUTO = frozenset({"device", "precision", "compile"})  # settings hold what `auto` stood for
DIGESTS = frozenset(
    {"data", "weights", "backbone_source", "source", "numbers"}
)  # their values mean nothing to a reader


def digest(settings: Mapping[str, Any]) -> str:
    """Return the hex digest of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def comparable(settings: Mapping[str, Any]) -> str:
    """Return a digest of the settings that runs must share to be compared: all but those of strategy and data."""
    return digest({name: value for name, value in settings.items() if name not in OF_STRATEGY | {"data"}})


def difference(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return what differs between two settings, as phrases such as "--init 150 (now 100)"."""
    phrases = []
    for name in sorted(stored.keys() | requested.keys()):
        before, now = stored.get(name), requested.get(name)
        if before != now:
            label = flag_of(name) if name in Config.model_fields else WORDS.get(name, name)
            chosen = ", given or chosen by `auto`" * (name in CHOSEN_BY_AUTO)
            values = "" if name in DIGESTS or None in (before, now) else f" {before} (now {now}{chosen})"
            phrases.append(label + values)
    return phrases


WORDS = {
    "data": "the data", "numbers": "the version of egal-bench", "source": "the source of the strategy",
    "backbone_source": "the source of the backbone",
}  # fmt: skip

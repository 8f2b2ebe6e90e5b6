"""Annotated image pools as verified WebDataset shards.

from egal_shards import ShardSet, Split, pack, verify
from egal_shards.sources import folder

pack(folder("data", group="patient_id"), "data-shards")
shards = ShardSet("data-shards")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from egal_shards.errors import ShardError

if TYPE_CHECKING:
    from egal_shards.manifest import Manifest
    from egal_shards.packing import pack
    from egal_shards.reader import Batch, Sample, ShardSet
    from egal_shards.records import Raw, Record, Source
    from egal_shards.split import Split
    from egal_shards.verifying import Report, verify

_MODULES = {  # imported on first use, so that `import egal_shards` costs nothing
    "Batch": "reader",
    "Manifest": "manifest",
    "Raw": "records",
    "Record": "records",
    "Report": "verifying",
    "Sample": "reader",
    "ShardSet": "reader",
    "Source": "records",
    "Split": "split",
    "pack": "packing",
    "verify": "verifying",
}

__all__ = [
    "Batch",
    "Manifest",
    "Raw",
    "Record",
    "Report",
    "Sample",
    "ShardError",
    "ShardSet",
    "Source",
    "Split",
    "pack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

"""Where records come from: each source is a function that returns a `Source`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from egal_shards.records import Source
from egal_shards.sources.phantom import phantom  # now, so that this name is the function and never its module

if TYPE_CHECKING:
    from egal_shards.sources.labels_csv import folder
    from egal_shards.sources.siim_covid19 import siim

__all__ = ["SOURCES", "Entry", "folder", "phantom", "siim"]


@dataclass(frozen=True)
class Entry:
    """A source by name: what it reads, and the function, imported when it is asked for."""

    summary: str
    module: str
    function: str

    def load(self) -> Callable[..., Source]:
        return getattr(import_module(self.module), self.function)


SOURCES = {
    "folder": Entry("images with a labels.csv, and masks or boxes", f"{__name__}.labels_csv", "folder"),
    "siim": Entry("SIIM-FISABIO-RSNA COVID-19 chest X-rays as PNG or JPEG", f"{__name__}.siim_covid19", "siim"),
    "phantom": Entry("built-in procedural lesions, no download", f"{__name__}.phantom", "phantom"),
}


def __getattr__(name: str) -> Any:
    if name not in SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return SOURCES[name].load()

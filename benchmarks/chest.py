"""The chest X-rays that benchmarks of whole pipelines run on: real ones where they are at hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.registry import Absent
from egal_bench.dataset import Dataset, open_dataset
from egal_shards import pack
from egal_shards.sources import folder

SIIM = Path(__file__).resolve().parents[2] / "shared" / "data" / "siim_covid19_256"


def chest_xrays(home: Path, size: int = 224) -> Dataset:
    """SIIM-COVID-19 in one channel, packed below `home` once. Raises Absent where it is not at hand."""
    if not SIIM.is_dir():
        raise Absent(f"the chest X-rays are not in {SIIM.name} beside the project")
    path = home / f"siim-{size}"
    if not path.is_dir():
        pack(folder(SIIM, group="patient_id", dup="dup_group"), path, size=size)
    return open_dataset(path)

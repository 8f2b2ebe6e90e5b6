"""The file of the network that `--network` names: a file, or the only one in the folder of a comparison."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from egal_bench.errors import BenchError

FILE = "network.safetensors"
LISTED = 5
MOST = 1000  # files that are looked for: more than a folder is asked to hold one of


def network_file(place: Path) -> Path:
    """Return the file of the network at `place`.

    Raises:
        BenchError: there is none, or a folder holds several, which the message lists.
    """
    if place.is_file():
        return place.resolve()
    if not place.is_dir():
        raise BenchError(f"--network {place}: does not exist; name a {FILE}, or the folder of a comparison")
    files = sorted(islice(place.rglob(FILE), MOST))
    if not files:
        raise BenchError(
            f"--network {place}: holds no {FILE}; `egal-bench compare --save-network` keeps the network of each run"
        )
    if len(files) > 1:
        listed = ", ".join(str(file) for file in files[:LISTED])
        more = f" and {len(files) - LISTED} more" if len(files) > LISTED else ""
        raise BenchError(f"--network {place}: holds {len(files)} networks; name one of them: {listed}{more}")
    return files[0].resolve()

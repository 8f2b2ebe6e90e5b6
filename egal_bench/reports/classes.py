"""Names of classes: the tables of a run know classes by number, the manifest of its shards knows their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from egal_bench.reports.joining import Joined
from egal_bench.reports.names import shown
from egal_bench.reports.shard_sets import UNREADABLE, shards_of


@dataclass(frozen=True)
class ClassNames:
    """The names of the classes of each data set whose shards can be read; class k is `of_dataset[name][k]`."""

    of_dataset: Mapping[str, tuple[str, ...]]

    def name(self, dataset: str, k: int) -> str:
        """Return the name of class k as its manifest writes it; "class k" where that is not known."""
        names = self.of_dataset.get(dataset, ())
        return names[k] if k < len(names) else f"class {k}"

    def shared(self, datasets: Collection[str], k: int) -> str:
        """Return the name to show for class k of several data sets; "class k" where their names differ."""
        names = {self.name(dataset, k) for dataset in datasets}
        return shown(names.pop()) if len(names) == 1 else f"class {k}"

    def legend(self, datasets: Collection[str]) -> str:
        """Return a sentence per data set that names its classes, "" where `shared` names them all."""
        if len({self.of_dataset.get(dataset, ()) for dataset in datasets}) < 2:
            return ""
        listings = {dataset: self.of_dataset.get(dataset, ()) for dataset in datasets}
        return "".join(
            f" {shown(dataset)}: {', '.join(f'class {k} is {shown(name)}' for k, name in enumerate(names))}."
            for dataset, names in listings.items()
            if names
        )


def class_names(joined: Joined) -> ClassNames:
    """Return the names of the classes of the data sets whose shards are still where their runs have read them."""
    of_dataset = {}
    for run in joined.records:
        if run.dataset not in of_dataset:
            try:
                of_dataset[run.dataset] = tuple(shards_of(joined, run).classes)
            except UNREADABLE:
                of_dataset[run.dataset] = ()
    return ClassNames(of_dataset)

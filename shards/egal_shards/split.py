"""The split into pool and test by units: a unit is all samples that groups and near-duplicates tie together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.records import Record

_DRAWS = 100  # then give up: the units of the data set tie its classes together


@dataclass(frozen=True)
class Split:
    """The share of the samples to hold out for testing, and the seed of the draw."""

    test: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise ShardError(f"split: test share {self.test} is not between 0 and 1 (exclusive); 0.3 is usual")
        if self.seed < 0:
            raise ShardError(f"split: seed {self.seed} is negative; use 0 or more")


@dataclass(frozen=True)
class _Unit:
    name: str
    samples: int
    classes: frozenset[str]


def assign(records: Sequence[Record], classes: Sequence[str], split: Split) -> tuple[list[str], list[str]]:
    """Return ("pool" or "test" for each record, name of the unit of each record).

    Units are the connected components of records that share a group or a near-duplicate group. A unit is named after
    its smallest group. Every unit has the same chance `split.test` of the test set, whatever its size. Units are drawn
    systematically along strata (rarest class, size), so that the shares of classes and samples come close to
    `split.test`. Each class is on both sides. A split that the source fixes is checked and kept. Without classes, so
    without labels, there is nothing to test on, and every sample goes to the pool.

    Raises ShardError where no such split exists.
    """
    names = _unit_names(records)
    fixed = [record.split for record in records]
    if any(fixed):
        _check_fixed(records, names, classes)
        return fixed, names
    if not classes:
        return ["pool"] * len(records), names
    units = _units(records, names)
    _check_classes(units, records, classes)
    ordered = [units[name] for name in sorted(units)]
    held_out = _draw(ordered, split)
    return ["test" if name in held_out else "pool" for name in names], names


def _unit_names(records: Sequence[Record]) -> list[str]:
    """Return the name of the unit of each record, by union-find over groups and near-duplicate groups."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for record in records:
        group = root(("group", record.group))
        if record.duplicates:
            parent[group] = root(("duplicates", record.duplicates))
    smallest: dict[tuple[str, str], str] = {}
    roots = [root(("group", record.group)) for record in records]
    for record, top in zip(records, roots, strict=True):
        smallest[top] = min(smallest.get(top, record.group), record.group)
    return [smallest[top] for top in roots]


def _units(records: Sequence[Record], names: Sequence[str]) -> dict[str, _Unit]:
    """Return the units by name, given the name of the unit of each record."""
    samples = Counter(names)
    labels: dict[str, set[str]] = {name: set() for name in samples}
    for record, name in zip(records, names, strict=True):
        labels[name].add(record.label)
    return {name: _Unit(name, samples[name], frozenset(labels[name])) for name in samples}


def _check_classes(units: dict[str, _Unit], records: Sequence[Record], classes: Sequence[str]) -> None:
    samples = Counter(record.label for record in records)
    for label in classes:
        holders = [unit for unit in units.values() if label in unit.classes]
        if samples[label] < 2:
            count = f"{samples[label]} sample{'s' * (samples[label] != 1)}"
            raise ShardError(
                f"split: class {label!r} has {count}, and pool and test need one each; add some, or pack without the "
                "class: --drop-class"
            )
        if len(holders) < 2:
            raise ShardError(
                f"split: all {samples[label]} samples of class {label!r} are in one group ({holders[0].name!r}), and "
                "no group may span pool and test; use a finer group column, or pack without the class: --drop-class"
            )


def _check_fixed(records: Sequence[Record], names: Sequence[str], classes: Sequence[str]) -> None:
    """Raise ShardError unless the fixed split cuts no unit and has every class on both sides."""
    sides: dict[str, str] = {}
    seen = set()
    for record, name in zip(records, names, strict=True):
        if record.split not in ("pool", "test"):
            raise ShardError(
                f"split: {record.file} has split {record.split!r}, and other samples have pool or test; "
                "give every sample pool or test, or no sample"
            )
        if sides.setdefault(name, record.split) != record.split:
            raise ShardError(
                f"split: group {name!r} (with its near-duplicates) spans pool and test, at {record.file} for example; "
                "move it to one side"
            )
        seen.add((record.label, record.split))
    for label in classes:
        for side in ("pool", "test"):
            if (label, side) not in seen:
                raise ShardError(
                    f"split: class {label!r} has no {side} sample in the fixed split; move one of its groups"
                )


def _draw(units: Sequence[_Unit], split: Split) -> set[str]:
    """Return the names of the units to put into the test set."""
    rng = np.random.default_rng(split.seed)
    for _ in range(_DRAWS):
        held_out = {units[i].name for i in _systematic(units, split.test, rng)}
        if _repair(units, held_out, rng):
            return held_out
    raise ShardError(
        f"split: no draw of {_DRAWS} put every class on both sides, because groups tie the classes together; "
        "use a finer group column, or a column that gives the split"
    )


def _systematic(units: Sequence[_Unit], share: float, rng: np.random.Generator) -> Iterator[int]:
    """Yield the positions of a systematic sample of the units, drawn from a random start.

    Units are ordered by class and size. Each unit is drawn with probability `share`, and any n consecutive units
    contribute n·share of them, to within one.
    """
    holders = Counter(label for unit in units for label in unit.classes)
    strata = [min((holders[label], label) for label in unit.classes) for unit in units]
    order = sorted(rng.permutation(len(units)), key=lambda i: (strata[i], units[i].samples.bit_length()))
    steps = np.floor(rng.random() + share * np.arange(len(units) + 1))
    return (order[i] for i in np.flatnonzero(np.diff(steps)))


def _repair(units: Sequence[_Unit], held_out: set[str], rng: np.random.Generator) -> bool:
    """Move random units to the other side until each class is on both sides. Return False where no move can do that."""
    counts = {
        True: Counter[str](),
        False: Counter[str](),
    }  # units per class in the test set (True) and in the pool (False)
    for unit in units:
        counts[unit.name in held_out].update(unit.classes)
    for label in sorted({label for unit in units for label in unit.classes}):
        for side in (True, False):
            if counts[side][label]:
                continue
            movable = [u for u in units if label in u.classes and all(counts[not side][c] > 1 for c in u.classes)]
            if not movable:
                return False
            unit = movable[rng.integers(len(movable))]
            counts[side].update(unit.classes)
            counts[not side].subtract(unit.classes)
            (held_out.add if side else held_out.discard)(unit.name)
    return True

"""Pool and test, split by unit: a unit is all that groups and near-duplicates tie together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.records import Record

_DRAWS = 100  # before giving up on a data set whose units tie its classes together


@dataclass(frozen=True)
class Split:
    """Share of the samples to hold out for testing, and the seed of the draw."""

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
    """("pool" | "test" of each record, name of each record's unit).

    Units are the connected components of records that share a group or a near-duplicate group, named after their
    smallest group. Every unit has the same chance `split.test` of the test set, whatever its size; units are drawn
    systematically along strata (rarest class, size), so that class and sample shares come out close to it. Each class
    ends up on both sides. Where the source fixes the split, that one is checked and kept.
    """
    names = _unit_names(records)
    fixed = [record.split for record in records]
    if any(fixed):
        _check_fixed(records, names, classes)
        return fixed, names
    units = _units(records, names)
    _check_classes(units, records, classes)
    ordered = [units[name] for name in sorted(units)]
    held_out = _draw(ordered, split)
    return ["test" if name in held_out else "pool" for name in names], names


def _unit_names(records: Sequence[Record]) -> list[str]:
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
            raise ShardError(
                f"split: class {label!r} has {samples[label]} samples, and pool and test need one each; "
                "add some, or leave the class out"
            )
        if len(holders) < 2:
            raise ShardError(
                f"split: all {samples[label]} samples of class {label!r} are in one group ({holders[0].name!r}), and "
                "no group may span pool and test; use a finer group column, or leave the class out"
            )


def _check_fixed(records: Sequence[Record], names: Sequence[str], classes: Sequence[str]) -> None:
    sides: dict[str, str] = {}
    seen = set()
    for record, name in zip(records, names, strict=True):
        if record.split not in ("pool", "test"):
            raise ShardError(
                f"split: {record.file} has split {record.split!r} while others have theirs fixed; "
                "give every sample pool or test, or none"
            )
        if sides.setdefault(name, record.split) != record.split:
            raise ShardError(
                f"split: group {name!r} (with its near-duplicates) spans pool and test, for one at {record.file}; "
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
    """Names of the units in the test set."""
    rng = np.random.default_rng(split.seed)
    for _ in range(_DRAWS):
        held_out = {units[i].name for i in _systematic(units, split.test, rng)}
        if _repair(units, held_out, rng):
            return held_out
    raise ShardError(
        f"split: no draw of {_DRAWS} put every class on both sides, because groups tie the classes together; "
        "use a finer group column, or fix the split yourself"
    )


def _systematic(units: Sequence[_Unit], share: float, rng: np.random.Generator) -> Iterator[int]:
    """Positions of a systematic sample from a random start: each unit with probability `share`, and from any run of n
    units that follow each other n·share of them, to within one. Units of like size and class follow each other."""
    holders = Counter(label for unit in units for label in unit.classes)
    strata = [min((holders[label], label) for label in unit.classes) for unit in units]
    order = sorted(rng.permutation(len(units)), key=lambda i: (strata[i], units[i].samples.bit_length()))
    steps = np.floor(rng.random() + share * np.arange(len(units) + 1))
    return (order[i] for i in np.flatnonzero(np.diff(steps)))


def _repair(units: Sequence[_Unit], held_out: set[str], rng: np.random.Generator) -> bool:
    """Move units across, at random, until each class is on both sides. False where no move can bring that about."""
    counts = {True: Counter[str](), False: Counter[str]()}  # units of each class: in test, in the pool
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

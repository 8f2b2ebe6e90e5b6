"""Remarks on the data of a source, which `pack` shows once: class names that are nearly equal, and missing groups."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from egal_shards.sources.names import NUMBER, joined, normalised, plural

BY_IMAGE = (
    "every image is a group of its own: a patient with several images may span pool and test; "
    "give group to split by patient"
)

_MISSING = frozenset({"nan", "<na>", "n/a", "#n/a", "null", "nat"})  # how programs write an empty cell


def with_notes(made: dict[str, Any], labels: Iterable[str], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of a source, with the note for the user where there is something to say.

    Args:
        made: The settings.
        labels: Class of each sample.
        notes: What else there is to say.
    """
    remarks = [*similar_classes(labels), *notes]
    return made | {"note": "; ".join(remarks)} if remarks else made


def similar_classes(labels: Iterable[str]) -> list[str]:
    """Return one sentence about each set of class names that are nearly equal, and about names such as "nan".

    Nearly equal names differ only in letter case, spaces, invisible characters, the Unicode form of their letters, or
    the notation of a number. Every sentence gives the number of samples per name.

    Args:
        labels: Class of each sample.
    """
    counts = Counter(labels)
    variants: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        variants[_bare(name)].append(name)
    sentences = [
        f"classes {joined([_counted(name, counts[name]) for name in names])} have nearly equal names; "
        "if they are one class, give them one name"
        for names in variants.values()
        if len(names) > 1
    ]
    return sentences + [
        f"class {_counted(name, counts[name])} looks like an empty cell; fill in the labels if it is one"
        for bare, names in variants.items()
        if bare in _MISSING
        for name in names
    ]


def _bare(name: str) -> str:
    """Return what is left of a name when letter case, spaces, invisible characters and number formats are ignored."""
    if NUMBER.fullmatch(name.strip()):
        return format(Decimal(name.strip()).normalize(), "f")
    visible = (
        letter
        for letter in unicodedata.normalize("NFKC", name)
        if letter != "_" and not letter.isspace() and unicodedata.category(letter) not in ("Cf", "Cc")
    )
    return unicodedata.normalize("NFKC", "".join(visible).casefold())


def _counted(name: str, samples: int) -> str:
    """Return a class name with its samples, with escapes where it is decomposed and looks like another name."""
    shown = repr(name) if normalised(name) == name else ascii(name)
    return f"{shown} ({plural(samples, 'sample')})"

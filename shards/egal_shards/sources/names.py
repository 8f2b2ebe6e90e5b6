"""Names: keys of samples, classes in order, Unicode forms, and the lists that messages contain."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

from egal_shards.errors import ShardError, did_you_mean

_LONGEST_KEY = 80
_DIGEST = 16  # hexadecimal digits of a digest in a key
_LISTED = 10  # items that a message lists
NUMBER = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?", re.ASCII)


def file_key(path: str) -> str:
    """Return the key of a path without suffix: every character but A-Z a-z 0-9 _ - becomes _.

    The beginning of a key longer than 80 characters becomes a digest of the path.
    """
    key = re.sub(r"[^A-Za-z0-9_-]", "_", path, flags=re.ASCII)
    if len(key) > _LONGEST_KEY:
        key = f"{_digest(path)}_{key[-(_LONGEST_KEY - _DIGEST - 1) :]}"
    return key


def distinct_keys(stems: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return one key per sample: `file_key` of its stem, and a digest of its file where that key says too little.

    A digest is added to the keys that several samples would share, and to keys without any letter or digit, which are
    all that remains of a name in another script.

    Args:
        stems: Path of each sample without suffix.
        files: Text that identifies each sample, such as its path with suffix.
    """
    keys = [file_key(stem) for stem in stems]
    uses = Counter(keys)
    return [
        f"{key[: _LONGEST_KEY - _DIGEST - 1]}_{_digest(file)}" if uses[key] > 1 or not key.strip("_-") else key
        for key, file in zip(keys, files, strict=True)
    ]


def sorted_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in order: by value where all are numbers, else as text."""
    distinct = set(labels)
    if all(NUMBER.fullmatch(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (Decimal(label), label)))
    return tuple(sorted(distinct))


def normalised(text: str) -> str:
    """Return the text in Unicode's composed form (NFC), so that one name is one text on every operating system."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def valid_text(text: str, where: str) -> str:
    """Return the text. Raise ShardError where it is not valid Unicode, as JSON and file names allow (half an emoji)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ShardError(f"{where}: {text[:60]!r} is not valid Unicode; rename it") from None
    return text


def joined(items: Iterable[str], most: int = _LISTED) -> str:
    """Return the items separated by commas, at most `most` of them, and the number of the others."""
    texts = list(items)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def nearest(word: str, options: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the option that is nearest to the word, or "" where none is similar."""
    suggestion = did_you_mean(word, options).strip()
    return f" ({suggestion})" if suggestion else ""


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: "1 sample", "2 samples"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_DIGEST]

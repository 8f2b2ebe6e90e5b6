"""URLs of shard sets: how they are joined, and how they are shown without their secrets.

Nothing here touches a network.
"""

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from egal_shards.errors import ShardError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"()<>]+")


def is_url(path: str | Path) -> bool:
    """Return whether the path of a set is a URL, not a folder."""
    return "://" in str(path)


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises ShardError where it is not valid. The message leaves the URL out, since a URL can hold secrets.
    """
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ShardError(f"the URL of a shard set is not valid ({error}); check its brackets and its port") from None


def shown(path: str | Path) -> str:
    """Return the path as it is, or a URL without user, password, query (signatures) and fragment."""
    if not is_url(path):
        return str(path)
    try:
        parts = urlsplit(str(path))
    except ValueError:
        return "(not a valid URL)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redacted(text: str) -> str:
    """Return the text with every URL in it replaced by `shown(url)`."""
    return _URL.sub(lambda url: shown(url[0]), text)


def set_name(path: str | Path) -> str:
    """Return the name of a set: the last part of the path of its folder or URL."""
    if not is_url(path):
        return Path(path).resolve().name
    parts = split_url(str(path))
    return parts.path.rstrip("/").rpartition("/")[2] or parts.netloc.rpartition("@")[2]


def joined(url: str, file: str) -> str:
    """Return the URL of a file in the set at `url`, with the same query."""
    parts = split_url(url)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{file}", parts.query, ""))

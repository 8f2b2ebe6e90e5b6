"""URLs of shard sets: what may be shown of them, and how they are joined. None of it touches a network."""

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from egal_shards.errors import ShardError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"()<>]+")


def is_url(path: str | Path) -> bool:
    """Whether a set is named by a URL, not by a folder."""
    return "://" in str(path)


def split_url(url: str) -> SplitResult:
    """Its parts. ShardError, without the URL since that may hold secrets, where it is none."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ShardError(f"the URL of a shard set is not valid ({error}); check its brackets and its port") from None


def shown(path: str | Path) -> str:
    """A path as it is, and of a URL what is no secret: neither user, password, query (signatures) nor fragment."""
    if not is_url(path):
        return str(path)
    try:
        parts = urlsplit(str(path))
    except ValueError:
        return "(not a valid URL)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redacted(text: str) -> str:
    """A text with its URLs as `shown`."""
    return _URL.sub(lambda url: shown(url[0]), text)


def set_name(path: str | Path) -> str:
    """The last part of the path of a folder or URL."""
    if not is_url(path):
        return Path(path).resolve().name
    parts = split_url(str(path))
    return parts.path.rstrip("/").rpartition("/")[2] or parts.netloc.rpartition("@")[2]


def joined(url: str, file: str) -> str:
    """The URL of a file of the set at `url`, with the same query."""
    parts = split_url(url)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{file}", parts.query, ""))

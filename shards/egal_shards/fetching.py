"""Bytes from a URL: one attempt, from an offset on. http and https by the standard library, all else by fsspec."""

import base64
import http.client
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlunsplit
from urllib.request import Request, urlopen

from egal_shards.errors import ShardError
from egal_shards.urls import redacted, shown, split_url

TIMEOUT = 30.0  # seconds without a byte (http, https); fsspec's backends have their own

_CHUNK = 1 << 20  # bytes handed on at a time
_SLOWEST = 1 << 18  # bytes in each TIMEOUT (http, https)
_BLOCK = 16 << 20  # bytes in one request to fsspec
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
_SAFE = "/%:@!$&'()*+,;=~?"  # characters of a URL that are not quoted


class Passing(Exception):
    """A fault that may be gone at the next attempt."""


class Changed(Exception):
    """What the server has does not fit what has been read of it, or what the manifest says."""


def chunks(url: str, start: int, stop: int) -> Iterator[bytes]:
    """The bytes [start, stop) of the file at a URL, or up to its end if that comes first.

    Passing or Changed, or ShardError where another attempt is of no use; none of them shows what `shown` hides.
    """
    return (_http if split_url(url).scheme in ("http", "https") else _fsspec)(url, start, stop)


def _http(url: str, start: int, stop: int) -> Iterator[bytes]:
    try:
        with urlopen(_request(url, start), timeout=TIMEOUT) as response:
            at = 0  # where a server without ranges starts
            if response.status == 206:
                at = start
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise Changed("the server answered with another range than was asked for")
            due, deadline = at + _SLOWEST, time.monotonic() + TIMEOUT
            while at < stop and (data := response.read1(min(_CHUNK, stop - at))):
                at += len(data)
                if at > start:
                    yield data[-(at - start) :]
                if at >= due:
                    due, deadline = at + _SLOWEST, time.monotonic() + TIMEOUT
                elif time.monotonic() > deadline:
                    raise Passing(f"less than {_SLOWEST >> 10} KiB arrived in {TIMEOUT:g} s")
    except HTTPError as error:
        raise _refusal(error, url) from None
    except http.client.InvalidURL:
        raise ShardError(f"{shown(url)}: is not a URL; check its host and port") from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise ShardError(f"{shown(url)}: {_reason(error)}; check the URL, or trust by SSL_CERT_FILE") from None
        raise Passing(_reason(error)) from None


def _request(url: str, start: int) -> Request:
    """User and password go into a header, which is not sent on to where a server may redirect."""
    parts = split_url(url)
    login, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit((parts.scheme, host, quote(parts.path, _SAFE), quote(parts.query, _SAFE), "")))
    if login:
        token = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    return request


def _refusal(error: HTTPError, url: str) -> Exception:
    if error.code == 416:
        return Changed("the file on the server is shorter than what was read of it")
    reason = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip()
    if error.code in _PASSING_STATUS:
        return Passing(reason)
    hint = "give credentials that may read it" if error.code in (401, 403) else "check the URL"
    return ShardError(f"{shown(url)}: {reason}; {hint}")


def _fsspec(url: str, start: int, stop: int) -> Iterator[bytes]:
    try:
        import fsspec

        files, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ShardError(
            f"{shown(url)}: needs a package that is not installed ({error}); pip install 'egal-bench[remote]', "
            "and for stores other than S3 the package that is named here"
        ) from None
    except ValueError as error:
        raise ShardError(f"{shown(url)}: cannot be opened ({_reason(error)}); check the URL") from None
    at = start
    while at < stop:
        end = stop if stop - at <= _BLOCK + 1 else at + _BLOCK  # never a request for what is just beyond the end
        data = _fsspec_range(files, path, at, end, url)
        yield data[: end - at]
        at += len(data)
        if at < end:
            return


def _fsspec_range(files: Any, path: str, start: int, end: int, url: str) -> bytes:
    try:
        return files.cat_file(path, start=start, end=end)
    except FileNotFoundError:
        raise ShardError(f"{shown(url)}: is not there; check the URL") from None
    except PermissionError as error:
        raise ShardError(f"{shown(url)}: {_reason(error)}; give credentials that may read it") from None
    except _of_backends() as error:
        if type(error).__name__ == "NoCredentialsError":  # botocore's
            raise ShardError(f"{shown(url)}: {_reason(error)}; give them as for the AWS command line") from None
        raise Passing(_reason(error)) from None


def _of_backends() -> tuple[type[Exception], ...]:
    """What the libraries behind fsspec raise, of those that it has loaded; most is an OSError by then."""
    known = [("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"), ("gcsfs.retry", "HttpError")]
    return (OSError, *(getattr(sys.modules[module], name) for module, name in known if module in sys.modules))


def _reason(error: BaseException) -> str:
    """What an error says, on one line and without secrets."""
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redacted(" ".join(text.split()))

"""One attempt to read bytes from a URL, from an offset on.

The standard library reads http and https, fsspec reads everything else.
"""

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

TIMEOUT = 30.0  # seconds without a byte, for http and https; the backends of fsspec have their own limits

_CHUNK = 1 << 20  # bytes yielded at a time
_SLOWEST = 1 << 18  # bytes that must arrive in each TIMEOUT, for http and https
_BLOCK = 16 << 20  # bytes in each request to fsspec
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_SAFE = "/%:@!$&'()*+,;=~?"  # characters of a URL that are not quoted


class Transient(Exception):
    """A fault that the next attempt may not meet."""


class Changed(Exception):
    """A file on the server that does not fit the bytes read before, or the manifest."""


def chunks(url: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of the file at a URL, or fewer where the file ends before.

    Raises Transient or Changed, or ShardError where another attempt is useless. Their messages hide what `shown` hides.
    """
    return (_http if split_url(url).scheme in ("http", "https") else _fsspec)(url, start, stop)


def _http(url: str, start: int, stop: int) -> Iterator[bytes]:
    try:
        with urlopen(_request(url, start), timeout=TIMEOUT) as response:
            at = 0  # a server without ranges sends the file from its beginning
            if response.status == 206:
                at = start
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise Changed("the server sent another range than the requested one")
            due, deadline = at + _SLOWEST, time.monotonic() + TIMEOUT
            while at < stop and (data := response.read1(min(_CHUNK, stop - at))):
                at += len(data)
                if at > start:
                    yield data[-(at - start) :]
                if at >= due:
                    due, deadline = at + _SLOWEST, time.monotonic() + TIMEOUT
                elif time.monotonic() > deadline:
                    raise Transient(f"less than {_SLOWEST >> 10} KiB arrived in {TIMEOUT:g} s")
    except HTTPError as error:
        raise _refusal(error, url) from None
    except http.client.InvalidURL:
        raise ShardError(f"{shown(url)}: is not a valid URL; check its host and port") from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise ShardError(
                f"{shown(url)}: {_reason(error)}; check the URL, or name its certificate by SSL_CERT_FILE"
            ) from None
        raise Transient(_reason(error)) from None


def _request(url: str, start: int) -> Request:
    """Return the request for the bytes from `start` on.

    User and password go into a header that is not sent on to another server after a redirect.
    """
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
    """Return the error to raise for an HTTP status."""
    if error.code == 416:
        return Changed("the file on the server is shorter than what was read of it")
    reason = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip()
    if error.code in _TRANSIENT_STATUS:
        return Transient(reason)
    hint = "give credentials that can read it" if error.code in (401, 403) else "check the URL"
    return ShardError(f"{shown(url)}: {reason}; {hint}")


def _fsspec(url: str, start: int, stop: int) -> Iterator[bytes]:
    try:
        import fsspec

        files, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ShardError(
            f"{shown(url)}: needs a package that is not installed ({error}); pip install 'egal-bench[remote]', "
            "and for stores other than S3 the package in parentheses"
        ) from None
    except ValueError as error:
        raise ShardError(f"{shown(url)}: cannot be opened ({_reason(error)}); check the URL") from None
    at = start
    while at < stop:
        end = stop if stop - at <= _BLOCK + 1 else at + _BLOCK  # so that no request begins at the end of the file
        data = _fsspec_range(files, path, at, end, url)
        yield data[: end - at]
        at += len(data)
        if at < end:
            return


def _fsspec_range(files: Any, path: str, start: int, end: int, url: str) -> bytes:
    try:
        return files.cat_file(path, start=start, end=end)
    except FileNotFoundError:
        raise ShardError(f"{shown(url)}: does not exist; check the URL") from None
    except PermissionError as error:
        raise ShardError(f"{shown(url)}: {_reason(error)}; give credentials that can read it") from None
    except _backend_errors() as error:
        if type(error).__name__ == "NoCredentialsError":  # botocore raises this error
            raise ShardError(f"{shown(url)}: {_reason(error)}; set them as for the AWS command line") from None
        raise Transient(_reason(error)) from None


def _backend_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the libraries behind fsspec that are loaded. fsspec turns most others into OSError."""
    known = [("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"), ("gcsfs.retry", "HttpError")]
    return (OSError, *(getattr(sys.modules[module], name) for module, name in known if module in sys.modules))


def _reason(error: BaseException) -> str:
    """Return the text of an error on one line and without secrets."""
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redacted(" ".join(text.split()))

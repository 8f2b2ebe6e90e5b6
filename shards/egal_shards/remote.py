"""Sets behind a URL, fetched when they are read into a cache of verified files that processes share.

CACHE/<sha256 of the manifest>/ holds manifest.json, index.parquet and shards under their own names. While a file NAME
is fetched it is called NAME.partial, and the next attempt continues from there. It gets its name once it is complete
and matches the digest in the manifest. A process that fetches or evicts NAME locks NAME.lock; a process that reads
NAME holds a shared lock on NAME itself. Locks end with their process.
"""

import fcntl
import hashlib
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from egal_shards.errors import ShardError
from egal_shards.fetching import Changed, Transient, chunks
from egal_shards.manifest import MANIFEST, MAX_MANIFEST, IndexFile, Manifest, ShardFile
from egal_shards.threads import unwanted
from egal_shards.urls import joined, shown

CACHE_GB = 50.0  # limit of the cache in 10⁹ bytes where EGAL_CACHE_GB is not set

_TRIES = 5  # attempts in a row without _PROGRESS
_PROGRESS = 1 << 20  # bytes of an attempt after which attempts are counted anew
_DELAY = 0.5  # seconds before the second attempt; each later pause is twice as long
_AHEAD = 2  # shards to fetch ahead of the one that is read
_PARTIAL, _LOCK = ".partial", ".lock"
_SET = re.compile(r"[0-9a-f]{64}")
_EVICTABLE = re.compile(r"(shard-[0-9]{6}\.tar|index\.parquet)(\.partial)?")

_log = logging.getLogger(__name__)


class Remote:
    """The files of the set at a URL, as open local files.

    The manifest is read from the URL, so that a set that has changed there gets a folder of its own in the cache.
    With `digest`, the SHA-256 of the manifest, a manifest in the cache is used instead.
    """

    def __init__(self, url: str, digest: str = "") -> None:
        self.url, self.shown = url, shown(url)
        self._cache, self._limit = _cache()
        with _disk_errors():
            raw = _cached_manifest(self._cache, digest) or _fetched_manifest(url)
            self.manifest = Manifest.parse(raw, joined(self.shown, MANIFEST))
            self.folder = self._cache / self.manifest.sha256
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_once(self.folder / MANIFEST, raw)
        self._checked: set[str] = set()  # names of files whose digest this process has checked
        self._recent: deque[int] = deque(maxlen=8)  # numbers of the shards read last
        self._fetching: set[int] = set()  # numbers of the shards that a thread is fetching ahead

    def open(self, part: ShardFile | IndexFile) -> FileIO:
        """Return a file of the set, open, complete and checked. It is not evicted before it is closed.

        Raises ShardError where it cannot be fetched.
        """
        with _disk_errors():
            return self._pinned(part) or self._fetched(part)

    def open_shard(self, number: int) -> FileIO:
        """Return the file of a shard as `open` does.

        Where shards are read in order, threads fetch the next ones.
        """
        shards = self.manifest.shards
        file = self.open(shards[number])
        if number == 0 or number - 1 in self._recent:
            room = int(self._limit // shards[number].bytes) - 2  # besides this shard and the one before
            for ahead in range(number + 1, min(number + 1 + min(_AHEAD, room), len(shards))):
                if ahead not in self._fetching and not (self.folder / shards[ahead].file).exists():
                    self._fetching.add(ahead)
                    threading.Thread(target=self._fetch_ahead, args=(ahead,), daemon=True).start()
        self._recent.append(number)
        return file

    def _fetch_ahead(self, number: int) -> None:
        """Fetch a shard in a thread."""
        try:
            self.open(self.manifest.shards[number]).close()
        except ShardError:
            pass  # an error that lasts is raised when the shard is read
        finally:
            self._fetching.discard(number)

    def _pinned(self, part: ShardFile | IndexFile) -> FileIO | None:
        """Return the cached file, locked against eviction, or None where it is missing or damaged."""
        path = self.folder / part.file
        try:
            file = FileIO(path)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        state = os.fstat(file.fileno())
        if state.st_nlink and state.st_size == part.bytes and self._is_right(file, part):
            os.utime(file.fileno())  # the least recently used file is evicted first
            return file
        file.close()
        return None

    def _is_right(self, file: FileIO, part: ShardFile | IndexFile) -> bool:
        """Return whether the digest of the file is right. Each process checks it once."""
        if part.file not in self._checked:
            if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                return False
            file.seek(0)
            self._checked.add(part.file)
        return True

    def _fetched(self, part: ShardFile | IndexFile) -> FileIO:
        """Fetch a file into the cache and return it as `_pinned` does."""
        with _locked(self.folder / f"{part.file}{_LOCK}"):  # another process may be fetching the file
            if file := self._pinned(part):
                return file
            path, partial = self.folder / part.file, self.folder / f"{part.file}{_PARTIAL}"
            if path.exists():
                _log.warning("%s: is damaged; fetching it again", path)
            self._download(part, partial)
            partial.rename(path)
            self._checked.add(part.file)
            if file := self._pinned(part):
                return file
        raise ShardError(f"{path}: vanished from the cache; do not delete files from the cache while it is in use")

    def _download(self, part: ShardFile | IndexFile, partial: Path) -> None:
        """Download the rest of a file to `partial` and check its digest. Wrong contents are fetched a second time."""
        url = joined(self.url, part.file)
        for remaining in (1, 0):
            done = partial.stat().st_size if partial.exists() else 0
            _make_room(self._cache, max(part.bytes - done, 0), self._limit, part.file)
            try:
                with partial.open("ab") as file:
                    _receive(url, file, part.bytes)
                    file.flush()
                    os.fsync(file.fileno())
                with partial.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == part.sha256:
                        return
                raise Changed("its bytes do not match their digest in the manifest")
            except Changed as change:
                partial.unlink()
                if not remaining:
                    raise ShardError(
                        f"{shown(url)}: {change}; the set at the URL is damaged or has changed: upload it again"
                    ) from None
                _log.warning("%s: %s; fetching it again from its beginning", shown(url), change)


def _cache() -> tuple[Path, float]:
    """Return (folder, limit in bytes) of the cache, from EGAL_CACHE and EGAL_CACHE_GB."""
    folder = Path(os.environ.get("EGAL_CACHE") or Path.home() / ".cache" / "egal-bench")
    text = os.environ.get("EGAL_CACHE_GB") or str(CACHE_GB)
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = -1.0
    if not 0 < limit < math.inf:
        raise ShardError(f"EGAL_CACHE_GB is {text!r}, not a size above 0 in GB (10⁹ bytes); {CACHE_GB:g} is usual")
    return folder.absolute(), limit


def _cached_manifest(cache: Path, digest: str) -> bytes:
    """Return the manifest with this digest from the cache, or b"" where the cache does not hold it."""
    path = cache / digest / MANIFEST
    raw = path.read_bytes() if digest and path.is_file() else b""
    return raw if hashlib.sha256(raw).hexdigest() == digest else b""


def _fetched_manifest(url: str) -> bytes:
    """Return the manifest of the set at a URL, at most MAX_MANIFEST + 1 bytes of it."""
    where = joined(url, MANIFEST)
    for delay in _delays():
        try:
            return b"".join(chunks(where, 0, MAX_MANIFEST + 1))
        except (Transient, Changed) as fault:
            _wait(where, fault, delay, "check the network and the URL")
    raise AssertionError("the last delay raises")


def _receive(url: str, file: BinaryIO, size: int) -> None:
    """Append to `file` until it has the `size` bytes of the file at `url`, in one attempt or several."""
    done = file.tell()
    while done < size:
        for delay in _delays():
            before = done
            _stop_if_unwanted(url)
            try:
                for data in chunks(url, done, size + 1):
                    file.write(data)
                    done += len(data)
                    _stop_if_unwanted(url)
                if done < size:
                    raise Transient(f"the connection ended after {done} of {size} bytes")
                break
            except Transient as fault:
                if done - before >= _PROGRESS:
                    break  # out of the inner loop, so that attempts are counted anew
                _wait(url, fault, delay, f"{done} of {size} bytes are kept: run it again to continue from there")
    if done > size:
        raise Changed(f"it has more than the {size} bytes in the manifest")


def _stop_if_unwanted(url: str) -> None:
    """Raise ShardError where the consumer of this thread has left, for example by Ctrl-C, which waits for threads."""
    if unwanted():
        raise ShardError(f"{shown(url)}: the download was stopped; the bytes that arrived are kept")


def _delays() -> Iterator[float | None]:
    """Yield the seconds to wait after each attempt, and None after the last one."""
    yield from (_DELAY * 2**i for i in range(_TRIES - 1))
    yield None


def _wait(url: str, fault: Exception, delay: float | None, fix: str) -> None:
    """Wait before the next attempt. Raises ShardError where there is none left."""
    if delay is None:
        raise ShardError(f"{shown(url)}: {fault}, after {_TRIES} attempts; {fix}") from None
    _log.warning("%s: %s; next attempt in %g s", shown(url), fault, delay)
    time.sleep(delay)


def _make_room(cache: Path, size: int, limit: float, file: str) -> None:
    """Evict the least recently used files until `size` more bytes fit, or every file that is left is in use."""
    if size > limit:
        raise ShardError(f"{cache}: {file} has {size} bytes, more than the cache may hold; raise EGAL_CACHE_GB")
    files = []
    for path in cache.glob("*/*"):
        if _SET.fullmatch(path.parent.name) and _EVICTABLE.fullmatch(path.name):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue  # another process evicted it
            files.append((state.st_mtime_ns, path, state.st_size))
    total = sum(size_on_disk for _, _, size_on_disk in files)
    for _, path, size_on_disk in sorted(files):
        if total + size <= limit:
            return
        if _evicted(path):
            total -= size_on_disk


def _evicted(path: Path) -> bool:
    """Remove a file that no process fetches or reads. Return whether it was removed."""
    lock = path.with_name(path.name.removesuffix(_PARTIAL) + _LOCK)
    try:
        with lock.open("ab") as fetching, path.open("rb") as reading:
            fcntl.flock(fetching, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(reading, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made where it is missing."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile holds the file, too


def _write_once(path: Path, data: bytes) -> None:
    """Write a file so that other processes see all of it or nothing."""
    if path.is_file() and path.read_bytes() == data:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PARTIAL}")
    partial.write_bytes(data)
    partial.rename(path)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn an OSError of the disk into a ShardError."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"{error.filename or 'the cache'}: {error.strerror or error}; check the disk and permissions, "
            "or choose another folder by EGAL_CACHE"
        ) from None

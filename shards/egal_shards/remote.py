"""Sets behind a URL: fetched when they are read, into a cache of verified files that processes share.

CACHE/<sha256 of the manifest>/ holds manifest.json, index.parquet and shards under their own names. A file gets its
name once it is whole and matches the digest in the manifest; until then it is NAME.partial, which the next attempt goes
on from. NAME.lock is locked by whoever fetches or evicts NAME, and NAME itself, shared, by whoever reads it. Locks end
with their process.
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
from egal_shards.fetching import Changed, Passing, chunks
from egal_shards.manifest import MANIFEST, MAX_MANIFEST, IndexFile, Manifest, ShardFile
from egal_shards.threads import unwanted
from egal_shards.urls import joined, shown

CACHE_GB = 50.0  # of 10⁹ bytes: the limit where EGAL_CACHE_GB says nothing

_TRIES = 5  # in a row without _PROGRESS
_PROGRESS = 1 << 20  # bytes
_DELAY = 0.5  # seconds before the second try, doubled for each one after
_AHEAD = 2  # shards fetched ahead of the one that is read
_PARTIAL, _LOCK = ".partial", ".lock"
_SET = re.compile(r"[0-9a-f]{64}")
_EVICTABLE = re.compile(r"(shard-[0-9]{6}\.tar|index\.parquet)(\.partial)?")

_log = logging.getLogger(__name__)


class Remote:
    """The files of the set at a URL, as open local files.

    The manifest is read from the URL, so that a set which was changed there is another one here; or, with `digest`, its
    SHA-256, from the cache if it is there.
    """

    def __init__(self, url: str, digest: str = "") -> None:
        self.url, self.shown = url, shown(url)
        self._cache, self._limit = _cache()
        with _disk_errors():
            raw = _cached_manifest(self._cache, digest) or _fetched_manifest(url)
            self.manifest = Manifest.parse(raw, joined(self.shown, MANIFEST))
            self.folder = self._cache / self.manifest.sha256
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _appear(self.folder / MANIFEST, raw)
        self._checked: set[str] = set()  # files whose digest this process has seen to be right
        self._recent: deque[int] = deque(maxlen=8)  # shards
        self._fetching: set[int] = set()  # shards that a thread fetches ahead

    def open(self, part: ShardFile | IndexFile) -> FileIO:
        """A file of the set, whole and checked; it is not evicted before it is closed.

        ShardError where it cannot be had.
        """
        with _disk_errors():
            return self._pinned(part) or self._fetched(part)

    def open_shard(self, number: int) -> FileIO:
        """Shard `number`, likewise. Where shards are read in order, the next ones are fetched meanwhile."""
        shards = self.manifest.shards
        file = self.open(shards[number])
        if number == 0 or number - 1 in self._recent:
            room = int(self._limit // shards[number].bytes) - 2  # for the one being read, and the one before
            for ahead in range(number + 1, min(number + 1 + min(_AHEAD, room), len(shards))):
                if ahead not in self._fetching and not (self.folder / shards[ahead].file).exists():
                    self._fetching.add(ahead)
                    threading.Thread(target=self._fetch_ahead, args=(ahead,), daemon=True).start()
        self._recent.append(number)
        return file

    def _fetch_ahead(self, number: int) -> None:
        try:
            self.open(self.manifest.shards[number]).close()
        except ShardError:
            pass  # whoever reads the shard will meet the error, if it lasts
        finally:
            self._fetching.discard(number)

    def _pinned(self, part: ShardFile | IndexFile) -> FileIO | None:
        """The cached file, locked against eviction; None where there is none, or a damaged one."""
        path = self.folder / part.file
        try:
            file = FileIO(path)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        state = os.fstat(file.fileno())
        if state.st_nlink and state.st_size == part.bytes and self._is_right(file, part):
            os.utime(file.fileno())  # what is least recently used is evicted first
            return file
        file.close()
        return None

    def _is_right(self, file: FileIO, part: ShardFile | IndexFile) -> bool:
        if part.file not in self._checked:
            if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                return False
            file.seek(0)
            self._checked.add(part.file)
        return True

    def _fetched(self, part: ShardFile | IndexFile) -> FileIO:
        with _locked(self.folder / f"{part.file}{_LOCK}"):  # another process may just be fetching it
            if file := self._pinned(part):
                return file
            path, partial = self.folder / part.file, self.folder / f"{part.file}{_PARTIAL}"
            if path.exists():
                _log.warning("%s: is damaged; it is fetched again", path)
            self._download(part, partial)
            partial.rename(path)
            self._checked.add(part.file)
            if file := self._pinned(part):
                return file
        raise ShardError(f"{path}: vanished from the cache; do not delete files of it while it is used")

    def _download(self, part: ShardFile | IndexFile, partial: Path) -> None:
        """Fill `partial` with what the manifest describes."""
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
                        f"{shown(url)}: {change}; the set at the URL is damaged or was changed: upload it again"
                    ) from None
                _log.warning("%s: %s; fetched again from its beginning", shown(url), change)


def _cache() -> tuple[Path, float]:
    """(folder, limit in bytes), as the environment says."""
    folder = Path(os.environ.get("EGAL_CACHE") or Path.home() / ".cache" / "egal-bench")
    text = os.environ.get("EGAL_CACHE_GB") or str(CACHE_GB)
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = -1.0
    if not 0 < limit < math.inf:
        raise ShardError(f"EGAL_CACHE_GB is {text!r}, not a size above 0 in GB (10⁹ bytes)")
    return folder.absolute(), limit


def _cached_manifest(cache: Path, digest: str) -> bytes:
    path = cache / digest / MANIFEST
    raw = path.read_bytes() if digest and path.is_file() else b""
    return raw if hashlib.sha256(raw).hexdigest() == digest else b""


def _fetched_manifest(url: str) -> bytes:
    where = joined(url, MANIFEST)
    for delay in _delays():
        try:
            return b"".join(chunks(where, 0, MAX_MANIFEST + 1))
        except (Passing, Changed) as fault:
            _wait(where, fault, delay, "check the network and the URL")
    raise AssertionError("the last delay raises")


def _receive(url: str, file: BinaryIO, size: int) -> None:
    """Append to `file` until it has the `size` bytes of the file at `url`, in as many attempts as that takes."""
    done = file.tell()
    while done < size:
        for delay in _delays():
            before = done
            _check_wanted(url)
            try:
                for data in chunks(url, done, size + 1):
                    file.write(data)
                    done += len(data)
                    _check_wanted(url)
                if done < size:
                    raise Passing(f"the connection ended after {done} of {size} bytes")
                break
            except Passing as fault:
                if done - before >= _PROGRESS:
                    break  # and count the attempts anew
                _wait(url, fault, delay, f"{done} of {size} bytes are kept: run it again to go on from there")
    if done > size:
        raise Changed(f"it has more than the {size} bytes that the manifest says")


def _check_wanted(url: str) -> None:
    if unwanted():  # as after Ctrl-C, which waits for the threads that read
        raise ShardError(f"{shown(url)}: nobody waits for it any more; what has come is kept")


def _delays() -> Iterator[float | None]:
    """Seconds to wait after each attempt; None after the last."""
    yield from (_DELAY * 2**i for i in range(_TRIES - 1))
    yield None


def _wait(url: str, fault: Exception, delay: float | None, mend: str) -> None:
    if delay is None:
        raise ShardError(f"{shown(url)}: {fault}, after {_TRIES} attempts; {mend}") from None
    _log.warning("%s: %s; next attempt in %g s", shown(url), fault, delay)
    time.sleep(delay)


def _make_room(cache: Path, size: int, limit: float, what: str) -> None:
    """Evict what was not used for longest until `size` more bytes fit, or all that is left is in use."""
    if size > limit:
        raise ShardError(f"{cache}: {what} has {size} bytes, more than the cache may hold; raise EGAL_CACHE_GB")
    found = []
    for path in cache.glob("*/*"):
        if _SET.fullmatch(path.parent.name) and _EVICTABLE.fullmatch(path.name):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue  # another process evicted it
            found.append((state.st_mtime_ns, path, state.st_size))
    total = sum(held for _, _, held in found)
    for _, path, held in sorted(found):
        if total + size <= limit:
            return
        if _evicted(path):
            total -= held


def _evicted(path: Path) -> bool:
    """Whether the file could be removed: nobody fetches or reads it."""
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
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do where a process was forked meanwhile


def _appear(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    if path.is_file() and path.read_bytes() == data:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PARTIAL}")
    partial.write_bytes(data)
    partial.rename(path)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"{error.filename or 'the cache'}: {error.strerror or error}; check the disk and permissions, "
            "or choose another folder by EGAL_CACHE"
        ) from None

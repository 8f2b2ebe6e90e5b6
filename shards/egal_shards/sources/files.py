"""Files of a source: opened only where they are regular, read within bounds, found by their Unicode names."""

import json
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from egal_shards.errors import ShardError
from egal_shards.sources.names import nearest, normalised

MAX_TABLE = 1 << 28  # bytes of a table
MAX_JSON = 1 << 28  # bytes of a JSON file of annotations
_COMPARED = 10_000  # names of a folder that are compared for a suggestion


def open_regular(path: Path, most: int) -> BinaryIO:
    """Open a regular file of at most `most` bytes for reading. Raise ShardError for anything else.

    Pipes and devices, which could block or never end, are refused without reading from them.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits until another program writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the path") from None
    except ValueError:
        raise ShardError(f"{str(path)!r}: is not a valid path; correct it") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ShardError(f"{path}: is not a regular file but a folder, pipe or device; give the path of a file")
    if status.st_size > most:
        os.close(handle)
        raise ShardError(
            f"{path}: has {status.st_size} bytes, and at most {most} are read of such a file; split it, or check it"
        )
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes, or raise ShardError."""
    try:
        with open_regular(path, most) as file:
            return file.read(most)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the disk") from None


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """Return the value in a JSON file of at most `most` bytes (UTF-8, with or without byte-order mark)."""
    raw = read_bytes(path, most)
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ShardError(f"{path}: is not UTF-8 text; save it as JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise ShardError(f"{path}: {place}is not valid JSON; correct it, or export it again") from None


def relative_path(text: str, what: str) -> str:
    """Return a path that stays inside its folder, without "." parts. Raise ShardError for any other.

    Args:
        text: The path as the user wrote it, with / between folders.
        what: Start of the error message, such as "labels.csv line 3: file".
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text or not path.name:
        raise ShardError(f"{what} {text!r} is not a path inside the folder; give it relative, without ..")
    return str(path)


@dataclass(frozen=True)
class Folder:
    """A folder whose files are found by name, whichever Unicode form (NFC or NFD) the disk stores."""

    root: Path
    _names: dict[Path, dict[str, list[str]]] = field(default_factory=dict)  # per folder: names by their NFC form

    def find(self, file: str, where: str) -> Path:
        """Return the path of the regular file that a table names. Raise ShardError, with a suggestion, without one.

        Args:
            file: Path relative to the folder, from `relative_path`.
            where: Place that names the file, for the error.
        """
        path = self.root / file
        if path.is_file():
            return path
        path = self.root
        for part in PurePosixPath(file).parts:
            spellings = self._listing(path).get(normalised(part), [])
            if len(spellings) != 1:
                raise ShardError(f"{where}: {self._absent(file, path, part)}")
            path /= spellings[0]
        if not path.is_file():
            raise ShardError(
                f"{where}: {file} in {self.root} is not a regular file but a folder, pipe or device; "
                "put the image itself there"
            )
        return path

    def _absent(self, file: str, folder: Path, name: str) -> str:
        """Return why there is no file, with the name in `folder` that comes nearest to `name`."""
        names = [spelling for spellings in self._listing(folder).values() for spelling in spellings]
        other_case = [spelling for spelling in names if normalised(spelling).casefold() == normalised(name).casefold()]
        hint = f" (did you mean {other_case[0]!r}?)" if other_case else nearest(name, names[:_COMPARED])
        if "\\" in file:
            hint = " (separate folders by /)"
        return f"there is no file {file} in {self.root}{hint}; add the file, or correct its name in the table"

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = defaultdict(list)
            try:
                for entry in sorted(os.listdir(folder)):
                    names[normalised(entry)].append(entry)
            except OSError:
                names.clear()  # not a folder, or not readable: it has no file to offer
            self._names[folder] = names
        return self._names[folder]

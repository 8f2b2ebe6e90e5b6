"""The user's own code: imported by the name `module:attribute`, and identified by the file that defines it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from egal_bench.errors import BenchError, UserCodeError
from egal_bench.files import file_digest


def load_attribute(reference: str, what: str) -> Any:
    """Return the attribute that `reference`, such as `my_module:Mine`, names; the working directory is searched too.

    Args:
        reference: `module:attribute`.
        what: names the reference in messages, such as "--backbone my_module:net".

    Raises:
        BenchError: there is no such module or attribute.
        UserCodeError: the module raised an exception while it was imported.
    """
    module, _, attribute = reference.partition(":")
    if not (module and attribute):
        raise BenchError(f"{what}: expected module:name")
    if os.getcwd() not in sys.path:  # a console script does not search the directory in which it is started
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BenchError(f"{what}: {error}") from None
    except (Exception, SystemExit) as error:  # the user's code must not end the program
        raise UserCodeError.of(what, error) from error


def source_digest(reference: str, what: str) -> str:
    """Return the hex digest of the source files behind `module:attribute`.

    These are the file of the module, and that of the attribute where another file defines it. Files that these import
    do not count. The arguments and errors are those of `load_attribute`; code without a source file is an error too.
    """
    attribute = load_attribute(reference, what)
    files = {_source_file(sys.modules[reference.partition(":")[0]]), _source_file(inspect.unwrap(attribute))}
    digests = sorted(file_digest(file) for file in files if file is not None)
    if not digests:
        raise BenchError(f"{what}: has no source file; write it into a module, so that a change of it can be noticed")
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _source_file(code: object) -> Path | None:
    """Return the existing file that defines a module, class or function; None where there is none."""
    try:
        file = Path(inspect.getsourcefile(code) or "")  # type: ignore[arg-type]
    except TypeError:  # built in, or an object that is neither a module nor a class nor a function
        return None
    return file if file.is_file() else None

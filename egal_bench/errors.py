"""The one error this package raises for what a person can mend, and the words it is made of."""

import difflib
from collections.abc import Iterable


class BenchError(ValueError):
    """Something a person can mend: the message says, on one line, what, where and how."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> BenchError:
    """A BenchError for a `name` that is none of `choices`, with the nearest of them."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(choices) if len(choices) <= 20 else f"{', '.join(choices[:5])} and {len(choices) - 5} more"
    return BenchError(f"unknown {kind} {name!r}: {hint}Known: {listed}")


def brief(error: BaseException) -> str:
    """The first line of what `error` says, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class Interrupted(BenchError):
    """Ctrl-C, with what is finished and how to resume."""

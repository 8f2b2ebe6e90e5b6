"""The one error that this package raises for bad input, and the suggestion that its messages make."""

import difflib
from collections.abc import Iterable


class ShardError(ValueError):
    """Bad input, described on one line: where it is, what is wrong, and how to fix it.

    Names of files and classes in the message are shown, not obeyed: what is not printable in them is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return the text with line breaks, terminal codes, invisible and invalid characters as escapes such as \\x1b."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return "did you mean 'x'? " with the choice that is nearest to the word, or "" where none is similar."""
    similar = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"did you mean {similar[0]!r}? " if similar else ""

"""Names as text: data sets, strategies and sample keys come from other people's files, so they may hold anything."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

from egal_shards.errors import printable

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters that make a spreadsheet program run a cell
LENGTH = 80  # characters of a name that are shown
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "−": r"$-$", "λ": r"$\lambda$", "…": r"\ldots{}", "τ": r"$\tau$",
    "→": r"$\rightarrow$", "∞": r"$\infty$", "–": "--",
}  # fmt: skip


def shown(name: object, length: int = LENGTH) -> str:
    r"""Return `name` on one line: control characters as \n or \x1b, and a long name cut, with a digest of all of it."""
    text = printable(str(name))
    if len(text) <= length:
        return text
    return f"{text[: length - 10]}…{hashlib.sha256(str(name).encode(errors='replace')).hexdigest()[:8]}"


def titled(strategy: str, oracles: Collection[str]) -> str:
    """Return the name of a strategy as `shown` does, with " (oracle)" behind it where it is one of `oracles`."""
    return f"{shown(strategy, LENGTH - 9)} (oracle)" if strategy in oracles else shown(strategy)


def latex(text: object) -> str:
    """Return `text` with every character that LaTeX would interpret escaped."""
    return "".join(_TEX.get(c, c) for c in str(text))


def markdown(text: object) -> str:
    """Return `text` for a cell of a Markdown table, so that it is shown as it is."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]|~$#" else c for c in printable(str(text)))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def spreadsheet(value: object) -> object:
    """Return a value of a CSV table: text is printable, and gets an apostrophe where a program would run it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def listed(names: list[str], most: int = 4) -> str:
    """Return "a", "a and b", "a, b and c", or for more than `most` names "a, b, c, d and 8 others"."""
    texts = [shown(name) for name in names]
    if len(texts) > most + 1:
        texts = [*texts[:most], f"{len(texts) - most} others"]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Return the number with a true minus sign; "–" where it is not known."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    value = round(value, digits) + 0.0  # no "−0.00"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """Return "p = 0.004", "p < 0.001" or "no p"."""
    if math.isnan(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"

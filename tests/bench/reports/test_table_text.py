"""Tables as text: names of other people's files are shown, never interpreted."""

import io

import pandas as pd

from egal_bench.reports.tables import Table

HOSTILE = "<script>|*x*\x1b[31m"


def table() -> Table:
    """Return a table whose names are hostile."""
    raw = pd.DataFrame({
        "strategy": ["=cmd()", "-1+1", "random"], "class": ["\x1b[31mred", "a\nb", "c"], "value": [0.5, -1.5, 2.0],
    })  # fmt: skip
    return Table("name", f"Of {HOSTILE}", "a note", ("strategy", HOSTILE), (("", [["=cmd()", "1.0"]]),), raw)


def test_csv_holds_no_formula_and_no_control_character():
    text = table().csv()
    assert "\x1b" not in text
    frame = pd.read_csv(io.StringIO(text))
    assert frame.strategy.tolist() == ["'=cmd()", "'-1+1", "random"]
    assert frame.value.tolist() == [0.5, -1.5, 2.0]
    assert len(frame) == 3


def test_markdown_escapes_title_and_header():
    title, _, header, _, row, *_ = table().markdown().splitlines()
    escaped = r"&lt;script&gt;\|\*x\*\\x1b\[31m"
    assert title == f"**Of {escaped}**"
    assert header == f"| strategy | {escaped} |"
    assert row == "| =cmd() | 1.0 |"

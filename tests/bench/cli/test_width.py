"""Text for a terminal: `list` fits its width, tables have no trailing spaces, and titles do not wrap with a table."""

import pytest
from rich.table import Table

from egal_bench.cli.inspect import inspect
from egal_bench.cli.list import LISTS, list_
from egal_bench.cli.output import print_table
from egal_bench.strategies import available
from egal_shards import pack
from egal_shards.sources import phantom


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", LISTS)
def test_list_fits_the_width_and_loses_no_word(monkeypatch, capsys, name, columns):
    texts = []
    for width in (columns, 10_000):
        monkeypatch.setenv("COLUMNS", str(width))
        list_(name)
        texts.append(capsys.readouterr().out)
    assert max(map(len, texts[0].splitlines())) <= columns
    assert texts[0].split() == texts[1].split()
    assert not [line for line in texts[0].splitlines() if line != line.rstrip()]


def test_list_has_names_alone_in_the_first_column(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    list_("strategies")
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert first == list(available())


def test_printed_tables_have_no_trailing_spaces(capsys):
    table = Table("a", "b", title="title")
    table.add_row("x", "")
    print_table(table, 80)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert lines == [line.rstrip() for line in lines]


def test_inspect_names_its_percentiles_and_fits_80_columns(tmp_path, capsys):
    pack(phantom(samples=60, size=32, roi_area=0.1, seed=0), tmp_path / "set", size=32, progress=False)
    inspect(str(tmp_path / "set"), out=tmp_path / "picture.png", samples=1)
    title, _, areas, names, *_ = lines = capsys.readouterr().out.splitlines()
    assert title.startswith("phantom-brain: 60 samples, 1×32×32 uint8 (npy), 1 shard, ")
    assert areas.split()[-5:] == ["area"] * 5
    assert names.split()[-5:] == ["p5", "p25", "p50", "p75", "p95"]
    assert max(map(len, lines[1:8])) <= 80
    assert sum(line.startswith("area p5: 5 % of the samples with ROI have a smaller ROI") for line in lines) == 1

"""Tables as spreadsheets and programs write them all give the same rows."""

import csv
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_shards import ShardError
from egal_shards.sources.tables import Table, duplicates, grouping

ROWS = [{"file": "a.png", "label": "x, or y; z", "note": ""}, {"file": "b.png", "label": "2", "note": "ä 患"}]


def written(delimiter=",", end="\r\n", rows=ROWS, extra=()):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
    writer.writerow([*rows[0], *extra])
    writer.writerows([*row.values(), *("" for _ in extra)] for row in rows)
    return stream.getvalue()


def cells(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return [row.cells for row in Table.open(path, ["file", "label"])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_line_ends_and_byte_order_marks(tmp_path, delimiter, end, encoding):
    assert cells(tmp_path / "t.csv", written(delimiter, end), encoding) == ROWS


@pytest.mark.parametrize("delimiter", [";", "|", ","])
@pytest.mark.parametrize("line", ["sep={}\r\n", "SEP={}\n", '"sep={}"\n', "sep={}\r"])
def test_a_first_line_names_the_delimiter(tmp_path, line, delimiter):
    path = tmp_path / "t.csv"
    assert cells(path, line.format(delimiter) + written(delimiter)) == ROWS
    assert next(iter(Table.open(path, []))).where == "t.csv line 3"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + ",,\r\n , ,\r\n\r\n",
        lambda text: "\n \n" + text,
        lambda text: text.replace("file,label,note", '" file ",\ufefflabel\u200b,note'),
        lambda text: text.removesuffix("\r\n") + ",,,\r\n",
    ],
)
def test_blank_rows_columns_and_marks_are_ignored(tmp_path, change):
    assert cells(tmp_path / "t.csv", change(written())) == ROWS


def test_unnamed_columns_are_ignored(tmp_path):
    assert cells(tmp_path / "t.csv", written(extra=["", " ", ""])) == ROWS
    numbered = [{"": str(i), **row} for i, row in enumerate(ROWS)]  # as pandas writes its index
    assert cells(tmp_path / "t.csv", written(rows=numbered)) == ROWS


def test_quoted_cells_may_contain_line_ends_and_delimiters(tmp_path):
    assert cells(tmp_path / "t.csv", 'file,label\na,"x\r\ny, z"\n') == [{"file": "a", "label": "x\r\ny, z"}]


def test_cells_may_be_long_and_the_limit_of_csv_stays(tmp_path):
    limit = csv.field_size_limit()
    long = [{"file": "a", "label": "x" * 1_000_000}]
    assert cells(tmp_path / "t.csv", written(rows=long)) == long
    assert csv.field_size_limit() == limit


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff\u200b"), max_size=8)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=5), st.sampled_from([",", ";", "\t"]))
@settings(deadline=None)
def test_every_table_is_read_as_it_was_written(tmp_path_factory, pairs, delimiter):
    rows = [{"file": "f" + first, "label": second} for first, second in pairs]
    path = tmp_path_factory.getbasetemp() / "property.csv"
    assert cells(path, written(delimiter, rows=rows)) == rows


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_tables(tmp_path, make):
    make(tmp_path / "t.csv")
    with pytest.raises(ShardError, match=r"t.csv: is not a regular file but a folder, pipe or device"):
        Table.open(tmp_path / "t.csv", [])


def test_a_table_beyond_its_bound_is_not_read(tmp_path):
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ShardError, match=rf"t.csv: has {1 << 40} bytes, and at most"):
        Table.open(tmp_path / "t.csv", [])


def test_groups_are_compared_in_one_unicode_form(tmp_path):
    (tmp_path / "t.csv").write_text("p\nZoe\u0301\nZoé\n")
    table = Table.open(tmp_path / "t.csv", ["p"])
    for function in (grouping(table, "p"), duplicates(table, "p")):
        assert [function(row) for row in table] == ["Zoé", "Zoé"]


def test_long_lists_of_columns_are_cut(tmp_path):
    (tmp_path / "t.csv").write_text(",".join(f"c{i}" for i in range(200)))
    with pytest.raises(ShardError, match=r"its columns: c0, .*c29 and 170 more$"):
        Table.open(tmp_path / "t.csv", ["file"])

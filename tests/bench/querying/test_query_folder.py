"""A query is written into an empty folder, a new one or that of a query, and into no other."""

import pytest

from bench.querying.conftest import queried
from egal_bench.errors import BenchError
from egal_bench.querying.query_folder import check_out


def files_in(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("scores/pool/shard-000000.parquet", "notes.txt"),
        ("query.csv", "query.parquet", "summary.txt", "environment.json", "contact_sheet.png", ".locks/a.lock"),
        (".locks/a.lock", ".123.query.parquet"),
    ],
)
def test_empty_folders_and_those_of_a_query_are_taken(tmp_path, names):
    check_out(files_in(tmp_path, *names))
    check_out(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("manifest.json", "scores/a"), r"holds a shard set \(manifest.json\): choose an empty or new folder as --out"),
        (("summary.txt", "rounds/a"), r"holds the results of a comparison \(rounds\)"),
        (("config.yaml",), r"holds a comparison \(config.yaml\)"),
        (("thesis.tex", "summary.txt"), r"holds something other than a query \(thesis.tex\): choose an empty or new"),
    ],
)
def test_folders_of_other_things_are_refused(tmp_path, names, message):
    with pytest.raises(BenchError, match=message):
        check_out(files_in(tmp_path, *names))


def test_a_link_to_nowhere_and_a_file_are_called_so(tmp_path):
    (tmp_path / "link").symlink_to("absent")
    with pytest.raises(BenchError, match="link is a symbolic link to absent, which does not exist"):
        check_out(tmp_path / "link")
    with pytest.raises(BenchError, match=r"a.txt is not a folder: choose another --out"):
        check_out(files_in(tmp_path, "a.txt") / "a.txt")


def test_a_query_into_a_shard_set_leaves_it_as_it_was(home):
    before = sorted(home.rglob("*"))
    with pytest.raises(BenchError, match="holds a shard set"):
        queried(home, home / "north")
    assert sorted(home.rglob("*")) == before

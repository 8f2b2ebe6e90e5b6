"""Keys of labelled samples: as a table, as lines, as `query.csv` writes them, and hostile."""

import pytest

from egal_bench.errors import BenchError
from egal_bench.querying.labelled_keys import read_keys


@pytest.fixture
def keys_of(tmp_path):
    """Return a function that writes bytes or text into a file and returns the keys that are read from it."""

    def read(content):
        path = tmp_path / "keys.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_keys(path)

    return read


@pytest.mark.parametrize(
    "content",
    [
        "a\nb-1\n\n_c\n",
        "key\na\nb-1\n_c\n",
        'rank,key,file\n1,a,"x,""y"\n2,b-1,\n3,_c,\n',
        "\ufeffkey\r\na\r\nb-1\r\n_c\r\na\r\n",
        "rank, Key \n1,a\n2,b-1\n3,_c\n",
        'KEY;file\na;"x,y"\nb-1;\n_c;\n',
        '"file"\t"key"\n"x"\t"a"\n"y"\t"b-1"\n"z"\t"_c"\n',
        "sep=;\r\nfile;key\r\nx;a\r\ny;b-1\r\nz;_c\r\n",
        '"sep=|"\nfile|key\nx|a\ny|b-1\nz|_c\n',
    ],
)
def test_a_table_and_lines_give_the_same_keys(keys_of, content):
    assert keys_of(content) == {"a", "b-1", "_c"}


def test_the_apostrophe_of_query_csv_does_not_belong_to_the_key(keys_of):
    assert keys_of("key\n'-a\n") == {"-a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key\n=1+1\n", r"line 2: '=1\+1' is not a key"),
        ("a\nb c\n", "line 2: 'b c' is not a key"),
        ("name,label\na,x\n", "no column `key`; its columns: name, label"),
        ("rank,key\n1\n", "line 2: '' is not a key"),
        ("name;label\na;x\n", "no column `key`; its columns: name, label"),
        ("sep=;\nkey;file\na;x\nb c;y\n", "line 4: 'b c' is not a key"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ('key\n"a\n', "is not CSV"),
        ("key\n" + "a" * 70_000, "is not CSV"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(keys_of, content, message):
    with pytest.raises(BenchError, match=message):
        keys_of(content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BenchError, match=r"--labelled .*absent.csv: No such file"):
        read_keys(tmp_path / "absent.csv")

"""Names of data sets and strategies that cannot be those of a folder are refused before any run starts."""

import pytest

from egal_bench.errors import BenchError
from egal_bench.runs.grid import check_names


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 231, "takes 231 characters"), ("患" * 80, "takes 720 characters"), ("set\udcff", "is not UTF-8")],
)
def test_a_name_that_no_folder_can_have_is_refused(name, words):
    with pytest.raises(BenchError, match=words) as error:
        check_names(["random", name])
    assert str(error.value).isprintable()


def test_ordinary_and_odd_names_pass():
    check_names(["random", "egal(lambda=0.3)", "a$b [x] %", "患甲左", "my_module:Mine"])

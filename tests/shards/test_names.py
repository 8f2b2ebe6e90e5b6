"""Keys, the order of classes, and class names that are nearly equal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egal_shards.layout import KEY
from egal_shards.sources.names import distinct_keys, file_key, joined, sorted_classes
from egal_shards.sources.remarks import similar_classes


@given(st.lists(st.text(min_size=1, max_size=100), unique=True, max_size=30))
def test_keys_are_valid_and_distinct(files):
    keys = distinct_keys(files, files)
    assert all(KEY.fullmatch(key) for key in keys)
    assert len(set(keys)) == len(keys)


@given(st.lists(st.text(min_size=1, max_size=100), unique=True, max_size=30), st.randoms())
def test_keys_do_not_depend_on_the_order(files, random):
    shuffled = random.sample(files, len(files))
    assert dict(zip(files, distinct_keys(files, files), strict=True)) == dict(
        zip(shuffled, distinct_keys(shuffled, shuffled), strict=True)
    )


@pytest.mark.parametrize("stem", ["a", "x/a b.c", "病例01", "_1", "d" * 100])
def test_ordinary_keys_have_no_digest(stem):
    assert distinct_keys([stem, "other"], [f"{stem}.png", "other.png"]) == [file_key(stem), "other"]


def test_names_in_another_script_get_a_digest():
    keys = distinct_keys(["患甲左", "患电右", "患"], ["患甲左.png", "患电右.png", "患.png"])
    assert [key[:4] for key in keys] == ["____", "____", "__" + keys[2][2:4]]
    assert distinct_keys(["患"], ["患.png"]) == [keys[2]]


def test_names_that_collide_all_get_a_digest():
    first, second, third = distinct_keys(["x/b", "x_b", "c"], ["x/b.png", "x_b.png", "c.png"])
    assert third == "c"
    assert first != second
    assert {first[:4], second[:4]} == {"x_b_"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "0"], ("0", "9", "10")),
        (["10.0", "2.0", "1.5"], ("1.5", "2.0", "10.0")),
        (["-1", "+2", "1"], ("-1", "1", "+2")),
        (["10", "9", "a"], ("10", "9", "a")),
        (["1e3", "2"], ("1e3", "2")),
        (["٣", "2"], ("2", "٣")),
        (["b", "a", "b"], ("a", "b")),
        (["1" + "0" * 300, "2"], ("2", "1" + "0" * 300)),
    ],
)
def test_the_order_of_classes(labels, expected):
    assert sorted_classes(labels) == expected


VARIANTS = [
    "glioma",
    *(
        "Glioma",
        "GLIOMA",
        " glioma",
        "gli oma",
        "glioma\u200b",
        "\ufeffglioma",
        "gli\u00adoma",
        "glioma\u00a0",
        "glioma_",
    ),
    *("ｇｌｉｏｍａ", "gl\u200eioma"),
]


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_nearly_equal_classes_are_reported_with_counts(variant):
    [sentence] = similar_classes(["glioma"] * 3 + [variant] + ["meningioma"] * 2)
    assert "'glioma' (3 samples)" in sentence
    assert f"{variant!r} (1 sample)" in sentence
    assert "meningioma" not in sentence


def test_composed_and_decomposed_letters_look_different():
    [sentence] = similar_classes([unicodedata.normalize(form, "é") for form in ("NFC", "NFD")])
    assert "'e\\u0301' (1 sample), 'é' (1 sample)" in sentence


@pytest.mark.parametrize("pair", [("1", "1.0"), ("01", "1"), ("2.50", "2.5")])
def test_numbers_of_one_value_are_nearly_equal(pair):
    assert len(similar_classes(pair)) == 1


@pytest.mark.parametrize("pair", [("a", "b"), ("1", "10"), ("-1", "1"), ("grade 1", "grade 2"), ("HER2+", "HER2-")])
def test_different_classes_are_not_reported(pair):
    assert similar_classes(pair) == []


@pytest.mark.parametrize("name", ["nan", "NaN", "<NA>", "N/A", "null"])
def test_names_of_empty_cells_are_reported(name):
    assert similar_classes([name, "a"]) == [
        f"class {name!r} (1 sample) looks like an empty cell; fill in the labels if it is one"
    ]


def test_lists_are_cut_at_ten():
    assert joined(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert joined(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"

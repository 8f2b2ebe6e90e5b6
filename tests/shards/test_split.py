"""Splits never cut a unit, have every class on both sides, meet the share, and favour no size of units."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_shards import Record, ShardError, Split
from egal_shards.split import assign


def records(rows):
    """Return records from rows of (label, group, near-duplicate group, fixed split)."""
    return [
        Record(f"k{i}", label, group, f"f{i}", lambda: None, duplicates=dup, split=split)
        for i, (label, group, dup, split) in enumerate(rows)
    ]


def components(rows):
    """Return the unit of each row by repeated relabelling, a slow reference."""
    unit = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                if unit[i] != unit[j] and (a[1] == b[1] or (a[2] and a[2] == b[2])):
                    unit[i] = unit[j] = min(unit[i], unit[j])
                    changed = True
    return unit


rows_of_few_groups = st.lists(
    st.tuples(
        st.sampled_from("ab"), st.integers(0, 12).map(str), st.sampled_from(["", "", "", "x", "y", "z"]), st.just("")
    ),
    min_size=4,
    max_size=30,
)


@given(rows_of_few_groups, st.floats(0.05, 0.95), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_units_stay_together_and_classes_on_both_sides(rows, share, seed):
    unit = components(rows)
    spread = {label: {u for u, row in zip(unit, rows, strict=True) if row[0] == label} for label in "ab"}
    if any(len(units) < 2 for units in spread.values()):
        with pytest.raises(ShardError, match=r"split: (all \d+ samples of )?class"):
            assign(records(rows), "ab", Split(share, seed))
        return
    sides, names = assign(records(rows), "ab", Split(share, seed))  # two classes can always be on both sides
    for u in set(unit):
        members = [i for i in range(len(rows)) if unit[i] == u]
        assert len({sides[i] for i in members}) == 1
        assert {names[i] for i in members} == {min(rows[i][1] for i in members)}
    assert {(row[0], side) for row, side in zip(rows, sides, strict=True)} == {
        (c, s) for c in "ab" for s in ("pool", "test")
    }


def test_units_are_named_after_their_smallest_group():
    rows = [("a", "p2", "d", ""), ("a", "p1", "d", ""), ("b", "p1", "", ""), ("a", "p3", "", ""), ("b", "p4", "", "")]
    assert assign(records(rows), "ab", Split())[1] == ["p1", "p1", "p1", "p3", "p4"]


def test_equal_names_of_groups_and_duplicates_do_not_tie():
    rows = [("a", "1", "", ""), ("a", "2", "1", ""), ("b", "3", "", ""), ("b", "4", "", "")]
    assert assign(records(rows), "ab", Split())[1] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.33, 0.5, 0.8])
def test_shares_of_samples_and_classes_are_met(share):
    rng = np.random.default_rng(0)
    labels = rng.choice(list("abc"), 900, p=[0.6, 0.3, 0.1])
    sizes = rng.integers(1, 9, 900)
    rows = [(label, f"g{i}", "", "") for i, label in enumerate(labels) for _ in range(sizes[i])]
    for seed in range(10):
        sides = np.array(assign(records(rows), "abc", Split(share, seed))[0]) == "test"
        assert sides.mean() == pytest.approx(share, abs=0.01)
        for label in "abc":
            chosen = np.array([row[0] == label for row in rows])
            assert sides[chosen].mean() == pytest.approx(share, abs=0.06)


def test_ungrouped_classes_are_split_to_within_one_sample():
    rows = [(label, f"g{label}{i}", "", "") for label, n in (("a", 57), ("b", 34), ("c", 10)) for i in range(n)]
    for seed in range(20):
        sides = np.array(assign(records(rows), "abc", Split(0.3, seed))[0]) == "test"
        for label, n in (("a", 57), ("b", 34), ("c", 10)):
            chosen = np.array([row[0] == label for row in rows])
            assert abs(sides[chosen].sum() - 0.3 * n) <= 1


def test_unit_size_does_not_change_the_chance_of_test():
    """One unit with 40 % of its class and twenty small units: each is in the test set in 30 % of 600 draws."""
    sizes = [40, *range(1, 13), *[2] * 8]
    rows = [(label, f"{label}{i}", "", "") for label in "ab" for i, n in enumerate(sizes) for _ in range(n)]
    sample = records(rows)
    hits = np.zeros(len(rows))
    for seed in range(600):
        hits += np.array(assign(sample, "ab", Split(0.3, seed))[0]) == "test"
    first = {row[1]: i for i, row in reversed(list(enumerate(rows)))}
    rates = np.array([hits[i] / 600 for i in first.values()])
    assert abs(rates - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 600)


def test_many_classes_of_two_units_each():
    names = [f"c{i:02d}" for i in range(60)]
    rows = [(label, f"{label}-{unit}", "", "") for label in names for unit in range(2)]
    sides, _ = assign(records(rows), names, Split(0.1))
    for label in names:
        assert {side for row, side in zip(rows, sides, strict=True) if row[0] == label} == {"pool", "test"}


def test_seeds_differ_and_order_of_records_does_not_matter():
    rows = [(label, f"{label}{i}", "", "") for label in "ab" for i in range(30)]
    drawn = {seed: assign(records(rows), "ab", Split(0.3, seed))[0] for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    backwards, _ = assign(records(rows[::-1]), "ab", Split(0.3, 0))
    assert backwards[::-1] == drawn[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "1", "", ""), ("a", "2", "", "")], "class 'b' has 0 samples"),
        ([("a", "1", "", ""), ("a", "2", "", ""), ("b", "3", "", "")], "class 'b' has 1 sample, and"),
        (
            [("a", "1", "", ""), ("a", "2", "", ""), ("b", "3", "", ""), ("b", "3", "", "")],
            "all 2 samples of class 'b' .*'3'",
        ),
        ([("a", "1", "", ""), ("b", "1", "", ""), ("a", "2", "", "test")], "f0 has split '', and other samples"),
        (
            [("a", "1", "", "pool"), ("b", "1", "", "test"), ("a", "2", "", "test")],
            "group '1' .*spans pool and test, .* f1",
        ),
        ([("a", "1", "d", "pool"), ("a", "2", "d", "test"), ("b", "3", "", "test"), ("b", "4", "", "pool")], "spans"),
        (
            [("a", "1", "", "pool"), ("a", "2", "", "test"), ("b", "3", "", "test"), ("b", "4", "", "test")],
            "'b' has no pool",
        ),
        (
            [("a", "1", "", "pool"), ("a", "2", "", "val"), ("b", "3", "", "test"), ("b", "4", "", "pool")],
            "f1 has split 'val'",
        ),
    ],
)
def test_impossible_splits_are_refused(rows, message):
    with pytest.raises(ShardError, match=message) as caught:
        assign(records(rows), "ab", Split())
    assert "\n" not in str(caught.value)
    assert re.search("; ", str(caught.value)), "says how to fix it"


def test_classes_tied_together_by_three_units_are_an_error():
    """Any two of the three classes share a unit, so no split has all classes on both sides."""
    rows = [(c, unit, "", "") for unit, classes in (("1", "ab"), ("2", "bc"), ("3", "ac")) for c in classes]
    with pytest.raises(ShardError, match="no draw of 100"):
        assign(records(rows), "abc", Split())


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ShardError, match=r"split: test share .* is not between 0 and 1"):
        Split(share)


def test_fixed_split_is_kept():
    rows = [("a", "1", "", "test"), ("a", "2", "", "pool"), ("b", "3", "", "pool"), ("b", "4", "", "test")]
    assert assign(records(rows), "ab", Split(0.9, 3))[0] == ["test", "pool", "pool", "test"]

"""What `pack` notices in a data set and says once."""

import numpy as np
import pytest

from egal_shards import ShardError, pack
from egal_shards.records import Raw, Record, Source

GREY = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1))
COLOUR = np.stack([GREY, GREY.T, np.full_like(GREY, 128)], axis=2)


def source(image=GREY, mask=None, samples=40, groups=20, classes=("a", "b"), rare=0):
    """Return a source whose samples share an image and a mask; `rare` samples have the class "rare"."""
    names = (*classes, "rare") if rare else classes
    labels = ["rare"] * rare + [classes[i % len(classes)] for i in range(samples - rare)]
    records = [
        Record(f"k{i:03}", label, f"g{i % groups}", f"k{i:03}.png", lambda: Raw(image, mask))
        for i, label in enumerate(labels)
    ]
    return Source("set", names, records, {"source": "test"})


def said(tmp_path, capsys, made, **settings):
    """Return what packing the source says on stderr."""
    pack(made, tmp_path / "out", size=32, **settings)
    return capsys.readouterr().err


def centred(area):
    mask = np.zeros((32, 32), bool)
    mask.ravel()[:area] = True
    return mask


def test_an_ordinary_set_is_packed_without_a_word(tmp_path, capsys):
    assert said(tmp_path, capsys, source(mask=centred(100))) == ""


def test_a_terminal_shows_a_progress_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    assert "pack set" in said(tmp_path, capsys, source(mask=centred(100)))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (source(image=COLOUR), "40 of 40 samples are in colour and packed as grey: --channels 3"),
        (source(image=np.full((32, 32), 7, np.uint8)), "40 of 40 samples have one pixel value everywhere"),
        (source(image=GREY // 64), "40 of 40 samples are nearly black"),
        (source(mask=centred(900)), "40 of 40 ROIs cover more than 80% of the image"),
        (source(mask=centred(1)), "40 of 40 ROIs are a single pixel"),
        (source(groups=9), "9 groups only"),
        (source(rare=6), "fewer than 5 pool samples of class 'rare' (4 samples)"),
    ],
    ids=["colour", "constant", "dark", "large", "pixel", "groups", "rare"],
)
def test_a_silence_becomes_one_line(tmp_path, capsys, made, words):
    assert said(tmp_path, capsys, made).count(words) == 1


def test_colour_that_is_kept_is_not_mentioned(tmp_path, capsys):
    assert "colour" not in said(tmp_path, capsys, source(image=COLOUR), channels=3)


def test_classes_can_be_dropped_or_chosen():
    made = source(classes=("a", "b", "c"), samples=42)
    assert made.of_classes(drop=["b"]).classes == ("a", "c")
    assert {record.label for record in made.of_classes(only=["c", "a"]).records} == {"a", "c"}
    assert made.of_classes() is made


@pytest.mark.parametrize(("only", "drop", "words"), [(["A"], [], "no class 'A'"), ([], ["a"], "two classes")])
def test_a_choice_of_classes_that_cannot_be_is_refused(only, drop, words):
    with pytest.raises(ShardError, match=words):
        source().of_classes(only, drop)

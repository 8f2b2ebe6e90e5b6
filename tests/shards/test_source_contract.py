"""What every registered source must do: declare its flags, be deterministic, pack, and refuse hostile input.

A new source needs an example of its input in source_examples.py, and then passes these tests.
"""

import inspect
import os
import re
from multiprocessing import get_context
from typing import Annotated, get_origin, get_type_hints

import numpy as np
import pytest

from egal_shards import ShardError, pack, verify
from egal_shards.layout import KEY
from egal_shards.sources import SOURCES
from shards.source_examples import EXAMPLES, WITHOUT_INPUT

SHARED = {"path", "kind", "size", "test", "seed", "progress", "return"}  # not flags of a source: `pack` sets them
UNIT = r"number|share|pixels?|voxels?|values?|percentiles?|0 to 1"

every_source = pytest.mark.parametrize("name", SOURCES)
every_source_with_input = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture
def load(tmp_path):
    """A function that loads the example of a source, built in a folder of the given name."""

    def load(name, folder="in"):
        if name in WITHOUT_INPUT:
            return SOURCES[name].load()(**WITHOUT_INPUT[name])
        root = tmp_path / folder
        if not root.exists():
            EXAMPLES[name].build(root)
        return EXAMPLES[name].load(name, root)

    return load


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A function that builds the example of a source and returns (example, its folder)."""
    monkeypatch.chdir(tmp_path)

    def build(name):
        root = tmp_path / "in"
        EXAMPLES[name].build(root)
        return EXAMPLES[name], root

    return build


def identity(record):
    return record.key, record.label, record.group, record.file, record.duplicates, record.split


def assert_refused(name, root, named, folder):
    """Check that loading or packing ends in a one-line ShardError, and that nothing is written."""
    before = sorted(folder.iterdir())
    with pytest.raises(ShardError) as caught:
        pack(EXAMPLES[name].load(name, root), folder / "out", size=16, progress=False)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 1000
    assert sorted(folder.iterdir()) == before


def test_every_source_has_an_example():
    assert set(SOURCES) == set(EXAMPLES) | set(WITHOUT_INPUT)


@every_source
def test_flags_have_help_texts_with_units(name):
    assert SOURCES[name].summary
    function = SOURCES[name].load()
    for parameter, hint in get_type_hints(function, include_extras=True).items():
        if parameter in SHARED:
            continue
        assert get_origin(hint) is Annotated, f"{parameter} has no help text"
        [text] = hint.__metadata__
        assert len(text) > 10
        assert "\n" not in text
        if hint.__origin__ in (int, float) or tuple[float, float] == hint.__origin__:
            assert re.search(UNIT, text), f"the help of {parameter} names no unit: {text}"


@every_source
def test_defaults_exist_for_all_but_the_input(name):
    parameters = inspect.signature(SOURCES[name].load()).parameters.values()
    assert [parameter.name for parameter in parameters if parameter.default is parameter.empty] in ([], ["path"])


@every_source
def test_samples_are_deterministic(name, load):
    first, second = load(name), load(name)
    assert (first.name, first.classes, first.made) == (second.name, second.classes, second.made)
    assert list(map(identity, first.records)) == list(map(identity, second.records))
    backward = [record.load() for record in reversed(second.records)][::-1]
    for record, expected in zip(first.records, backward, strict=True):
        raw = record.load()
        np.testing.assert_array_equal(raw.image, expected.image)
        assert (raw.mask is None) == (expected.mask is None)
        assert raw.mask is None or np.array_equal(raw.mask, expected.mask)
        assert (raw.boxes, raw.about) == (expected.boxes, expected.about)


@every_source
def test_keys_are_unique_and_do_not_depend_on_the_place(name, load, tmp_path):
    first, moved = load(name, "in"), load(name, "elsewhere/in")
    keys = [record.key for record in first.records]
    assert len(set(keys)) == len(keys) >= 4
    assert all(KEY.fullmatch(key) for key in keys)
    assert list(map(identity, first.records)) == list(map(identity, moved.records))
    assert str(tmp_path) not in repr([list(map(identity, first.records)), first.made])


@every_source
def test_a_source_packs_verifies_and_gives_equal_bytes(name, load, tmp_path):
    source = load(name)
    sets = [tmp_path / "first", tmp_path / "second"]
    for folder in sets:
        pack(load(name), folder, size=16, channels=source.channels or 1, progress=False)
        assert verify(folder, progress=False).samples == len(source.records)
    assert {path.name: path.read_bytes() for path in sets[0].iterdir()} == {
        path.name: path.read_bytes() for path in sets[1].iterdir()
    }


@every_source_with_input
def test_a_missing_folder_is_named(name, example, tmp_path):
    _, root = example(name)
    assert_refused(name, root / "absent", "absent", tmp_path)


@every_source_with_input
def test_an_empty_folder_is_named(name, example, tmp_path):
    example(name)
    (tmp_path / "empty").mkdir()
    assert_refused(name, tmp_path / "empty", "empty", tmp_path)


@every_source_with_input
def test_a_truncated_file_is_named(name, example, tmp_path):
    sample, root = example(name)
    os.truncate(root / sample.file, (root / sample.file).stat().st_size // 2)
    assert_refused(name, root, sample.named, tmp_path)


@every_source_with_input
@pytest.mark.parametrize("payload", [b"", b"plain text, not an image", bytes(4096)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_not_an_image_is_named(name, example, tmp_path, payload):
    sample, root = example(name)
    sample.replace(root, payload)
    assert_refused(name, root, sample.named, tmp_path)


@every_source_with_input
def test_absurd_dimensions_are_refused(name, example, tmp_path):
    sample, root = example(name)
    sample.replace(root, sample.huge)
    assert_refused(name, root, sample.named, tmp_path)


@every_source_with_input
@pytest.mark.parametrize(
    "target", ["itself", "/dev/zero", "/etc/passwd", "."], ids=["loop", "device", "text", "folder"]
)
def test_a_symbolic_link_instead_of_an_image_is_refused(name, example, tmp_path, target):
    sample, root = example(name)
    file = root / sample.file
    file.unlink()
    file.symlink_to(file.name if target == "itself" else target)
    assert_refused(name, root, sample.named, tmp_path)


@every_source_with_input
def test_a_pipe_instead_of_an_image_is_refused(name, example, tmp_path):
    sample, root = example(name)
    (root / sample.file).unlink()
    os.mkfifo(root / sample.file)
    child = get_context("fork").Process(target=assert_refused, args=(name, root, sample.named, tmp_path))
    child.start()  # a source that opens the pipe waits for ever
    child.join(60)
    blocked = child.is_alive()
    child.kill()
    child.join()
    assert not blocked
    assert child.exitcode == 0

"""Arrays on disk: what counts as written after damage; a continued pass has the bytes of an undisturbed one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_bench.errors import BenchError
from egal_bench.scoring.spool import JOURNAL, Spool, damage

SAMPLES, BATCH = 20, 6  # the last batch is shorter


def rows_of(start):
    rng = np.random.default_rng(start)
    count = min(BATCH, SAMPLES - start)
    return {"maps": rng.random((count, 3, 2)).astype(np.float16), "pooled": rng.random((count, 3))}


def fill(folder, batches=None):
    """Append the missing batches to the spool in `folder`, at most `batches` of them; return the rows it had."""
    spool = Spool(SAMPLES, folder, "rows")
    before = spool.done
    while spool.done < SAMPLES and batches != 0:
        spool.append(rows_of(spool.done))
        batches = None if batches is None else batches - 1
    return before


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    fill(folder)
    return content(folder)


def stored(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_columns_are_the_appended_rows(tmp_path):
    fill(tmp_path)
    columns = Spool(SAMPLES, tmp_path, "rows").columns()
    batches = [rows_of(start) for start in range(0, SAMPLES, BATCH)]
    for name in ("maps", "pooled"):
        np.testing.assert_array_equal(columns[name], np.concatenate([rows[name] for rows in batches]))
    assert damage(tmp_path, SAMPLES) is None


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_pass_continues_after_the_last_batch(tmp_path, undisturbed, batches):
    fill(tmp_path, batches)
    assert fill(tmp_path) == batches * BATCH
    assert content(tmp_path) == undisturbed


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_changed_or_lost_byte_is_found_and_repaired(tmp_path_factory, undisturbed, data):
    folder = stored(tmp_path_factory.mktemp("damaged"), undisturbed)
    name = data.draw(st.sampled_from(sorted(undisturbed)))
    position = data.draw(st.integers(0, len(undisturbed[name]) - 1))
    damaged = bytearray(undisturbed[name])
    if data.draw(st.booleans()):
        damaged[position] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[position:]
    (folder / name).write_bytes(damaged)
    assert damage(folder, SAMPLES) is not None
    fill(folder)
    assert content(folder) == undisturbed


def test_zeros_in_place_of_rows_do_not_count(tmp_path, undisturbed):
    stored(tmp_path, undisturbed)
    rows = np.load(tmp_path / "maps.npy", mmap_mode="r+")
    rows[8:] = 0
    rows.flush()
    assert damage(tmp_path, SAMPLES) == "damaged from row 6 on"
    assert fill(tmp_path) == 6
    assert content(tmp_path) == undisturbed


def test_arrays_without_checksums_do_not_count(tmp_path, undisturbed):
    stored(tmp_path, {name: data for name, data in undisturbed.items() if name != JOURNAL})
    assert damage(tmp_path, SAMPLES) == "without checksums, as earlier versions wrote them"
    assert fill(tmp_path) == 0
    assert content(tmp_path) == undisturbed


def test_arrays_of_another_number_of_samples_do_not_count(tmp_path, undisturbed):
    stored(tmp_path, undisturbed)
    assert damage(tmp_path, SAMPLES + 1) == damage(tmp_path, SAMPLES - 1) == "damaged from row 0 on"


@settings(deadline=None, max_examples=100)
@given(journal=st.binary(max_size=200) | st.from_regex(rb"(\d{1,20} [0-9a-f]{8}\n){0,8}", fullmatch=True))
def test_no_journal_makes_a_spool_fail(tmp_path_factory, undisturbed, journal):
    folder = stored(tmp_path_factory.mktemp("journal"), undisturbed | {JOURNAL: journal})
    fill(folder)
    assert content(folder) == undisturbed


def test_full_disk_is_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(BenchError, match=r"the rows need 0\.0 GB and 0\.0 GB are free; choose another --out"):
        fill(tmp_path)


def test_disk_that_fills_up_keeps_the_batches_before(tmp_path, undisturbed, monkeypatch):
    fill(tmp_path, 2)
    spool = Spool(SAMPLES, tmp_path, "rows")

    def full(*args):
        raise BenchError("pooled.npy: No space left on device; the same command resumes")

    monkeypatch.setattr(spool, "_write", full)
    with pytest.raises(BenchError, match="No space left"):
        spool.append(rows_of(12))
    assert fill(tmp_path) == 12
    assert content(tmp_path) == undisturbed

"""A query holds what a full sort of the whole pool holds, whatever divides, interrupts or damages the work."""

import errno
import json
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from egal_bench.config import Config
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError, Interrupted
from egal_bench.models.saving import load_network
from egal_bench.querying import query as query_module
from egal_bench.querying import score_shard as score_shard_module
from egal_bench.querying.pools import PoolSet, described
from egal_bench.querying.query_files import cell
from egal_bench.scoring.pool_pass import score
from egal_bench.tables.locks import try_lock


@pytest.fixture(scope="module")
def whole(home):
    """Entropy and misalignment of every pool sample of both sets, in float64, by a pass over each whole set."""
    network = load_network(home / "network.safetensors")
    frames = []
    for name in ("north", "south"):
        dataset = open_dataset(home / name)
        scores = score(network.network, dataset, dataset.pool, Config(device="cpu"), "cpu", needs={"roi"})
        columns = {"entropy": scores.entropy, "misalignment": scores.overlap.misalignment}
        frames.append(pd.DataFrame({"pool": name, "key": dataset.keys[dataset.pool], **columns}))
    return pd.concat(frames, ignore_index=True).astype({"entropy": float, "misalignment": float})


def stored(out):
    return pd.read_parquet(out / "query.parquet")


def summary_of(out):
    return (out / "summary.txt").read_text()


def names(frame):
    return list(zip(frame["shard"].str.partition("/")[0], frame["key"], strict=True))


def test_query_is_the_top_of_a_full_sort(query, whole):
    result = query("egal", top=15)
    rows = stored(result.out)
    scores = (whole.entropy + whole.misalignment.fillna(whole.misalignment.mean())).to_numpy()
    order = np.argsort(-scores, kind="stable")[:15]
    np.testing.assert_allclose(rows.score, scores[order], rtol=1e-5)
    by_name = dict(zip(zip(whole.pool, whole.key, strict=True), scores, strict=True))
    assert len(set(names(rows))) == 15
    np.testing.assert_allclose([by_name[name] for name in names(rows)], rows.score, rtol=1e-5)
    assert (result.samples, result.chosen, rows["rank"].tolist()) == (len(whole), 15, list(range(1, 16)))


def test_query_files_hold_the_same_rows_and_where_they_come_from(scored, home):
    out = scored
    rows, table = stored(out), pd.read_csv(out / "query.csv")
    pd.testing.assert_frame_equal(rows, table, check_dtype=False)
    assert rows.file.str.startswith("phantom/brain/").all()
    assert set(rows.predicted) <= set(open_dataset(home / "north").shards.classes)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["pools"].keys() == {"north", "south"}
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "6 samples to annotate next, by egal" in summary_of(out)


def test_order_of_sets_and_two_processes_change_no_byte(scored, fresh_query):
    one, other = scored, fresh_query(shards=("south", "north"), settings={"workers": 2}).out
    scores = sorted(str(path.relative_to(one)) for path in one.glob("scores/*/*.parquet"))
    for name in ("query.csv", "query.parquet", *scores):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("damage", ["absent", "truncated", "flipped", "foreign", "half-written", "pipe", "device"])
def test_only_the_missing_scores_are_computed_again(query, damage):
    out = query("entropy").out
    before, scores = (out / "query.csv").read_bytes(), sorted(out.glob("scores/*/*.parquet"))
    victim, content = scores[1], scores[1].read_bytes()
    os.utime(scores[0], (1, 1))
    match damage:
        case "absent":
            victim.unlink()
        case "truncated":
            victim.write_bytes(content[:-20])
        case "flipped":
            victim.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
        case "foreign":
            pq.write_table(pq.read_table(victim).replace_schema_metadata(None), victim)
        case "half-written":
            victim.rename(victim.with_name(f".123.{victim.name}"))
        case "pipe":
            victim.unlink()
            os.mkfifo(victim)
        case "device":
            victim.unlink()
            victim.symlink_to("/dev/zero")
    query("entropy")
    assert victim.read_bytes() == content
    assert scores[0].stat().st_mtime == 1
    assert sorted(out.glob("scores/*/.*")) == []
    assert (out / "query.csv").read_bytes() == before


def test_a_folder_in_the_place_of_scores_is_named_and_kept(query, tmp_path):
    file = tmp_path / "out/scores/north/shard-000000.parquet"
    file.unlink()
    file.mkdir()
    with pytest.raises(BenchError, match=r"shard-000000.parquet: is a folder, .*; move it elsewhere"):
        query("entropy")
    assert file.is_dir()


def test_another_strategy_scores_no_shard_again(query, monkeypatch):
    monkeypatch.setattr(query_module, "outcomes", lambda *_: pytest.fail("a shard is scored again"))
    assert query("margin").strategy == "margin"


def test_scores_of_other_settings_are_refused_and_kept(query, tmp_path):
    file = tmp_path / "out/scores/north/shard-000000.parquet"
    before = file.read_bytes()
    with pytest.raises(BenchError, match=r"was scored with --threads 1 \(now 2\); score into another --out"):
        query("entropy", settings={"threads": 2})
    assert file.read_bytes() == before


def test_damaged_shards_are_named_and_the_others_scored(home, tmp_path, score_status, capsys):
    shutil.copytree(home / "north", tmp_path / "north")
    shards = sorted((tmp_path / "north").glob("*.tar"))
    shards[1].write_bytes(shards[1].read_bytes()[:3000])
    shards[2].unlink()
    words = [tmp_path / "north", "--network=network.safetensors", "--top=3", "--workers=1", f"--out={tmp_path / 'out'}"]
    assert score_status(*words, "--json") == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out.splitlines()[-1])
    assert list(answer["damaged"]) == ["north/shard-000001.tar", "north/shard-000002.tar"]
    assert answer["chosen"] == 3
    assert captured.err.splitlines()[-1].startswith("error: 2 shards could not be scored")
    shutil.copytree(home / "north", tmp_path / "north", dirs_exist_ok=True)
    assert score_status(*words) == 0  # the same command adds them
    assert len(list((tmp_path / "out").glob("scores/north/*.parquet"))) == len(shards)


def test_a_sample_without_finite_output_costs_its_shard_alone(home, tmp_path, score_status, capsys, monkeypatch):
    real, calls = score_shard_module.scores_of, []

    def with_nan(columns, *, soft):
        scores = real(columns, soft=soft)
        calls.append(len(scores.entropy))
        if len(calls) == 2:
            scores.entropy[0] = np.nan
        return scores

    monkeypatch.setattr(score_shard_module, "scores_of", with_nan)
    words = ["north", "--network=network.safetensors", "--top=3", "--workers=1", f"--out={tmp_path / 'out'}", "--json"]
    assert score_status(*words) == 2
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(answer["damaged"]) == ["north/shard-000001.tar"]
    assert "network's output is NaN or infinite" in answer["damaged"]["north/shard-000001.tar"]
    assert answer["samples"] == sum(calls) - calls[1] > 0


def test_labelled_samples_are_left_out_and_unknown_keys_counted(query, tmp_path):
    first = stored(query("entropy", top=4, shards=("north",)).out)
    keys = tmp_path / "keys.csv"
    keys.write_text("key\n" + "".join(f"{key}\n" for key in [*first.key, "nobody"]))
    result = query("entropy", top=4, shards=("north",), labelled=keys)
    assert (result.labelled, result.unknown) == (4, 1)
    assert not set(stored(result.out).key) & set(first.key)
    assert "1 key of --labelled lies in no shard" in summary_of(result.out)
    keys.write_text(f"key\n{first.key[0]}\n")
    query("entropy", top=4, shards=("north",), labelled=keys)
    assert "Left out: 1 labelled sample.\n" in summary_of(result.out)


def test_all_samples_are_chosen_where_top_asks_for_more(query, whole):
    result, pool = query("margin", top=1000, shards=("south",)), whole[whole.pool == "south"]
    assert result.chosen == len(pool)
    assert "--top 1000 asks for more samples than there are, so the query is the whole pool." in summary_of(result.out)
    assert sorted(names(stored(result.out))) == sorted(zip(pool.pool, pool.key, strict=True))


@pytest.mark.parametrize("strategy", ["badge", "kcenter", "typiclust", "egal(diverse=3)", "egal(normalise=rank)"])
def test_strategies_that_compare_samples_give_distinct_ones(query, strategy):
    result = query(strategy, top=6)
    assert len(set(names(stored(result.out)))) == 6
    note = "best of" if "normalise" not in strategy else "a few numbers of each"
    assert note in summary_of(result.out)


def test_diverse_candidates_are_the_best_by_egal_itself(query):
    best = names(stored(query("egal", top=6).out))
    spread = names(stored(query("egal(diverse=2)", top=3, candidates=6).out))
    assert set(spread) <= set(best)


def test_predicted_rois_are_learnt_from_labelled_samples(query, fresh_query, tmp_path):
    keys = tmp_path / "keys.csv"
    keys.write_text("key\n" + "".join(f"{key}\n" for key in stored(query("random", top=12).out).key))
    result = query("egal-predicted", top=4, labelled=keys)
    rows = stored(result.out)
    assert result.labelled >= 12
    assert (rows.score > rows.entropy).all()  # D against the predicted ROI is added
    with pytest.raises(BenchError, match=r"learns from the ROIs of labelled samples; name samples .* with --labelled"):
        fresh_query("egal-predicted")
    keys.write_text("nobody\n")
    with pytest.raises(BenchError, match=r"keys.csv: names no sample of .* that has an ROI"):
        query("egal-predicted", labelled=keys)


def test_random_differs_between_seeds_and_is_the_same_for_one(query):
    draws = [names(stored(query("random", seed=seed).out)) for seed in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]


def test_ctrl_c_says_how_many_shards_are_kept(fresh_query, monkeypatch):
    real = query_module.outcomes

    def interrupted(tasks, workers):
        yield next(iter(real(tasks, workers)))
        raise KeyboardInterrupt

    monkeypatch.setattr(query_module, "outcomes", interrupted)
    with pytest.raises(Interrupted, match=r"interrupted: 1 of \d+ shards are scored in .*; the same command resumes"):
        fresh_query()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(fresh_query, tmp_path, monkeypatch):
    def full(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(BenchError, match=r"shard-000000.parquet: No space left on device; free space"):
        fresh_query()
    assert list((tmp_path / "fresh" / "scores").rglob("*.parquet")) == []


def test_a_shard_that_another_process_scores_is_waited_for(query, tmp_path, monkeypatch):
    (tmp_path / "out/scores/north/shard-000000.parquet").unlink()
    locks = [try_lock(tmp_path / "out", "scores of north/shard-000000.tar")]
    monkeypatch.setattr(query_module, "POLL", 0)
    monkeypatch.setattr(query_module, "say", lambda line: locks.pop().release() if "waiting for" in line else None)
    assert query("entropy", shards=("north",)).damaged == {}
    assert locks == []
    assert (tmp_path / "out/scores/north/shard-000000.parquet").is_file()


def test_names_of_pools_hold_no_secrets_of_urls():
    pool = PoolSet("set", "https://user:password@host/data/set?signature=secret", "0" * 64, 0, ())
    assert described([pool, pool]) == "https://host/data/set, https://host/data/set"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_text_cells_cannot_be_formulas(text):
    assert not cell(text).startswith(("=", "+", "-", "@", "\t"))
    assert cell("a=b") == "a=b"


def test_cells_show_unprintable_characters_as_escapes():
    assert cell("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert (cell(float("nan")), cell(-0.5), cell(3)) == ("", "-0.5", "3")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top": 0}, "--top 0: must be at least 1"),
        ({"candidates": 5, "top": 6}, "--candidates 5: must be at least --top, 6"),
        ({"strategy": "entropi"}, "did you mean 'entropy'"),
        ({"shards": ("north", "north")}, "two shard sets are named 'north'"),
    ],
)
def test_mistakes_are_reported_before_anything_is_scored(fresh_query, tmp_path, fields, message):
    with pytest.raises(BenchError, match=message):
        fresh_query(**fields)
    assert not (tmp_path / "fresh").exists()

"""inspect, and what the command line does with URLs: the same as with folders, and no secret is shown or stored."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from egal_bench.comparison import compare
from egal_bench.config import resolve
from egal_shards import ShardSet, Split, pack
from egal_shards.sources import phantom
from shards.fault_server import serving
from shards.shard_sets import edit_manifest

EGAL_BENCH = str(Path(sys.executable).with_name("egal-bench"))
LOGIN, SECRET = "Basic dXNlcjpoMWRkZW4=", "h1dden"  # user:h1dden


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "set"
    pack(phantom("brain", samples=60, size=32), folder, size=32, split=Split(0.3, 0), progress=False)
    return folder


def run(cwd, *words):
    environment = os.environ | {"EGAL_CACHE": str(cwd / "cache")}
    return subprocess.run([EGAL_BENCH, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment)


def test_inspect_writes_a_picture_and_answers_in_json(packed, tmp_path):
    done = run(tmp_path, "inspect", packed, "--samples=2", "--json")
    assert done.returncode == 0, done.stderr
    result, shards = json.loads(done.stdout.splitlines()[-1]), ShardSet(packed)
    assert (result["samples"], result["with_roi"], list(result["classes"])) == (60, 60, list(shards.classes))
    assert sum(row["samples"] for row in result["classes"].values()) == 60
    assert result["manifest_sha256"] == shards.manifest.sha256
    assert result["out"] == "set.contact.png"
    assert [path.name for path in tmp_path.iterdir()] == [result["out"]]
    assert all(name in done.stdout for name in shards.classes)
    chosen = run(tmp_path, "inspect", packed, "--out", "other.png")
    assert chosen.returncode == 0
    assert (tmp_path / "other.png").is_file()


def test_what_a_set_says_of_itself_is_neither_a_path_nor_obeyed_by_the_terminal(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    edit_manifest(copy, lambda fields: fields.update(name="../../\x1b[2J[red]", made={"\x1b[2J": "\x1b]0;x\x07"}))
    done = run(tmp_path, "inspect", copy, "--samples=1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "[red]" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.contact.png"]


def test_inspect_answers_without_torch(packed, tmp_path):
    code = (
        "import sys; from egal_bench.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('status', end.code, 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "inspect", str(packed), "--samples=1"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "status 0 False", done.stdout + done.stderr


def test_inspect_refuses(packed, tmp_path):
    for words, says in [
        (["nowhere"], "error: nowhere/manifest.json: No such file"),
        ([packed, "--samples=0"], "error: samples 0 is not between 1 and"),
    ]:
        done = run(tmp_path, "inspect", *words)
        assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
        assert done.stderr.startswith(says)


@contextmanager
def guarded(folder):
    """(URL with secrets, URL without, Script) of a server that asks for them."""
    with serving(folder, login=LOGIN, query=f"sig={SECRET}") as (url, script):
        yield f"{url.replace('://', f'://user:{SECRET}@')}?sig={SECRET}", url, script


def assert_unseen(folder, *said):
    assert not [text for text in said if SECRET in text]
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in kept if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


def test_verify_and_inspect_take_urls_and_keep_their_secrets(packed, tmp_path):
    with guarded(packed) as (secret, url, script):
        verified = run(tmp_path, "verify", secret, "--json")
        assert json.loads(verified.stdout.splitlines()[-1])["ok"] is True, verified.stderr
        inspected = run(tmp_path, "inspect", secret, "--samples=1", "--json")
        assert json.loads(inspected.stdout.splitlines()[-1])["out"] == "set.contact.png", inspected.stderr
        assert len(script.asked("shard-000000.tar")) == 1
        script.query = "sig=other"
        refused = run(tmp_path, "verify", secret)
        assert refused.returncode == 2
        assert (
            refused.stderr == f"error: {url}/manifest.json: HTTP 401 Unauthorized; give credentials that may read it\n"
        )
        twice = run(tmp_path, "verify", secret, secret)
        assert url in twice.stderr
    assert_unseen(tmp_path, *(done.stdout + done.stderr for done in (verified, inspected, refused, twice)))


def test_compare_takes_urls_and_keeps_their_secrets(packed, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EGAL_CACHE", "cache")
    quick = {"backbone": "small-cnn", "init": 5, "budget": 2, "rounds": 1, "seeds": 1, "steps": 1, "workers": 1}
    with guarded(packed) as (secret, url, _):
        done = compare(resolve({"shards": (secret,), "strategies": "random", **quick}))
    assert (done.out, len(done.rounds)) == (Path("runs/set"), 2)
    assert yaml.safe_load((done.out / "config.yaml").read_text())["shards"] == [url]
    assert list((done.out / "rounds").glob("dataset=set/*"))
    assert_unseen(tmp_path, *capfd.readouterr())

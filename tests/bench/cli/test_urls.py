"""inspect, and what the command line does with URLs: the same as with folders, and no secret is shown or stored."""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from bench.command_line import egal_bench, error_of, json_of
from egal_bench.config import resolve
from egal_bench.runs.comparison import compare
from egal_shards import ShardSet, Split, pack
from egal_shards.sources import phantom
from shards.fault_server import serving
from shards.shard_sets import edit_manifest

LOGIN, SECRET = "Basic dXNlcjpoMWRkZW4=", "h1dden"  # user:h1dden


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "set"
    pack(phantom("brain", samples=60, size=32), folder, size=32, split=Split(0.3, 0), progress=False)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Let commands, and this process, cache what they download in tmp_path/cache."""
    monkeypatch.setenv("EGAL_CACHE", str(tmp_path / "cache"))


def run(cwd: Path, *words) -> subprocess.CompletedProcess:
    return egal_bench(*words, cwd=cwd)


def test_inspect_writes_a_picture_and_answers_in_json(packed, tmp_path):
    process = run(tmp_path, "inspect", packed, "--samples=2", "--json")
    result, shards = json_of(process), ShardSet(packed)
    assert (result["samples"], result["with_roi"], list(result["classes"])) == (60, 60, list(shards.classes))
    assert sum(row["samples"] for row in result["classes"].values()) == 60
    assert result["manifest_sha256"] == shards.manifest.sha256
    assert result["out"] == "set.contact.png"
    assert [path.name for path in tmp_path.iterdir()] == [result["out"]]
    assert all(name in process.stdout for name in shards.classes)
    assert run(tmp_path, "inspect", packed, "--out", "other.png").returncode == 0
    assert (tmp_path / "other.png").is_file()


def test_text_in_a_set_is_neither_path_nor_terminal_code(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    edit_manifest(copy, lambda fields: fields.update(name="../../\x1b[2J[red]", made={"\x1b[2J": "\x1b]0;x\x07"}))
    process = run(tmp_path, "inspect", copy, "--samples=1")
    assert process.returncode == 0, process.stderr
    assert "\x1b" not in process.stdout
    assert "[red]" in process.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.contact.png"]


def test_inspect_answers_without_torch(packed, tmp_path):
    code = (
        "import sys; from egal_bench.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('status', end.code, 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "inspect", str(packed), "--samples=1"]
    process = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert process.stdout.splitlines()[-1] == "status 0 False", process.stdout + process.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: nowhere/manifest.json: No such file"),
        (["SET", "--samples=0"], "error: samples 0 is not between 1 and"),
    ],
)
def test_inspect_refuses(packed, tmp_path, words, message):
    process = run(tmp_path, "inspect", *(packed if word == "SET" else word for word in words))
    assert error_of(process).startswith(message)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def guarded(folder):
    """Serve the folder to those who have the secrets; yield the URL with secrets, the URL without, and the Script."""
    with serving(folder, login=LOGIN, query=f"sig={SECRET}") as (url, script):
        yield f"{url.replace('://', f'://user:{SECRET}@')}?sig={SECRET}", url, script


def assert_unseen(folder: Path, *texts: str) -> None:
    """Check that the secret is in none of the texts, and in no file or file name below the folder."""
    assert not [text for text in texts if SECRET in text]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


def test_verify_and_inspect_take_urls_and_keep_their_secrets(packed, tmp_path):
    with guarded(packed) as (secret, url, script):
        verified = run(tmp_path, "verify", secret, "--json")
        assert json_of(verified)["ok"] is True
        inspected = run(tmp_path, "inspect", secret, "--samples=1", "--json")
        assert json_of(inspected)["out"] == "set.contact.png"
        assert len(script.starts("shard-000000.tar")) == 1
        script.query = "sig=other"
        refused = run(tmp_path, "verify", secret)
        assert error_of(refused).startswith(f"error: {url}/manifest.json: HTTP 401 Unauthorized; give credentials")
        assert len(refused.stderr.splitlines()) == 1
        twice = run(tmp_path, "verify", secret, secret)
        assert url in twice.stderr
    assert_unseen(tmp_path, *(process.stdout + process.stderr for process in (verified, inspected, refused, twice)))


@pytest.mark.usefixtures("unrendered")
def test_compare_takes_urls_and_keeps_their_secrets(packed, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    quick = {"backbone": "small-cnn", "init": 5, "budget": 2, "rounds": 1, "seeds": 1, "steps": 1, "workers": 1}
    with guarded(packed) as (secret, url, _):
        comparison = compare(resolve({"shards": (secret,), "strategies": "random", **quick}))
    assert (comparison.out, len(comparison.rounds)) == (Path("runs/set"), 2)
    assert yaml.safe_load((comparison.out / "config.yaml").read_text())["shards"] == [url]
    assert list((comparison.out / "rounds").glob("dataset=set/*"))
    assert_unseen(tmp_path, *capfd.readouterr())

"""The identity of a run: what repeats it, what leaves it alone, and what is refused."""

import pandas as pd
import pytest
import yaml

from bench.command_line import egal_bench, error_of
from bench.tiny import FLAGS, contents
from egal_bench.config import Config
from egal_bench.runs import identity
from egal_bench.tables.results import load


def stamps(out):
    """Return the time of writing of each table's file, by path."""
    return {file: file.stat().st_mtime_ns for file in out.glob("*/dataset=*/**/part.parquet")}


def untouched(before, out, strategy=""):
    """Return whether the files that were there are as they were."""
    after = stamps(out)
    return all(after.get(file) == stamp for file, stamp in before.items() if f"strategy={strategy}" in str(file))


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished comparison's folder, and the flags that made it."""
    import shutil

    out = tmp_path / "runs"
    shutil.copytree(finished[0], out)
    return out, [*FLAGS, "--workers=1", f"--out={out}"]


def test_every_setting_has_one_place_in_the_identity():
    of_training = set().union(*identity.OF_TRAINING.values())
    places = [identity.SCHEDULING, identity.DATA, identity.STRATEGY, identity.EVERY_RUN, of_training]
    fields = [name for place in places for name in place]
    assert sorted(fields) == sorted(Config.model_fields)


def test_settings_decide_the_hash_and_scheduling_does_not(phantom_dataset):
    from egal_bench.runs.identity import settings_of
    from egal_bench.strategies import find

    def settings(strategy="egal", regime="frozen", **fields):
        config = Config(regime=regime, device="cpu", **fields)
        digests = {"weights": "none", "backbone_source": ""}
        return settings_of(config, phantom_dataset(150), find(strategy, config), digests)

    scheduling = {"workers": 7, "out": "x", "seeds": 9, "strategies": ("margin",), "shards": ("x",), "rounds": 3}
    assert settings(**scheduling) == settings()
    for change in ({"lambda_": 0.5}, {"budget": 61}, {"threads": 2}, {"threshold": 0.6}, {"l2": 0.5}):
        assert settings(**change) != settings(), change
    assert settings(lambda_=0.5, strategy="random") == settings(strategy="random")
    assert settings(steps=7) == settings()  # of the other regime
    assert settings(steps=7, regime="finetune") != settings(regime="finetune")


def test_identity_holds_the_kind_of_device_and_not_its_number(phantom_dataset):
    from egal_bench.runs.identity import settings_of
    from egal_bench.strategies import find

    def settings(device):
        config = Config(device=device)
        return settings_of(config, phantom_dataset(150), find("random", config), {"weights": "none"})

    assert settings("cuda:1") == settings("cuda:0") == settings("cuda")
    assert settings("cuda:1")["device"] == "cuda"
    assert settings("cuda:1") != settings("cpu")


def test_head_decides_which_recipe_belongs_to_the_identity(phantom_dataset):
    from egal_bench.runs.identity import settings_of
    from egal_bench.strategies import find

    def settings(head="prototypical", **fields):
        config = Config(head=head, device="cpu", **fields)
        return settings_of(config, phantom_dataset(150), find("random", config), {"weights": "none"})

    assert settings() != settings("linear")
    assert settings(steps=7) == settings()
    assert settings("linear", shots=7) == settings("linear")
    changes = {"shots": 4, "queries": 4, "epochs": 4, "episodes": 4, "prototypes": "last-episode", "explain_layer": "x"}
    for name, value in (changes | {"learning_rate": 0.1, "explain_loss": 0.5}).items():
        assert settings(**{name: value}) != settings(), name


def test_lambda_repeats_only_the_strategies_that_have_one(copied, tmp_path):
    out, flags = copied
    before = stamps(out)
    process = egal_bench("compare", *flags, "--lambda=0.3", cwd=tmp_path, status=0)
    assert "4 of 6 runs are already in" in process.stderr
    assert untouched(before, out)
    rounds = load(out)["rounds"]
    assert sorted(rounds.strategy.unique()) == ["egal", "egal(lambda=0.3)", "entropy", "random"]


def test_further_seeds_and_strategies_leave_finished_runs_alone(copied, tmp_path):
    out, flags = copied
    before = stamps(out)
    process = egal_bench("compare", *flags, "--seeds=0:3", "--strategies=random,margin", cwd=tmp_path, status=0)
    assert "2 of 6 runs are already in" in process.stderr
    assert untouched(before, out)
    seeds = load(out)["rounds"].groupby("strategy").seed.unique().map(sorted).to_dict()
    assert seeds == {"egal": [0, 1], "entropy": [0, 1], "margin": [0, 1, 2], "random": [0, 1, 2]}


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("--init=16", "--init 15 (now 16)"),
        ("--steps=5", "--steps 4 (now 5)"),
        ("--shortcut=0.5", "shortcut 0.9 (now 0.5)"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(copied, tmp_path, flag, names):
    out, flags = copied
    before = stamps(out)
    message = error_of(egal_bench("compare", *flags, flag, cwd=tmp_path))
    assert names in message
    assert "--out" in message
    assert untouched(before, out)


def test_a_setting_that_auto_chose_is_called_so(copied, tmp_path):
    _, flags = copied
    message = error_of(egal_bench("compare", *flags, "--compile=on", cwd=tmp_path))
    assert "--compile off (now on, given or chosen by `auto`)" in message


def test_replace_recomputes_runs_with_other_settings(copied, tmp_path):
    out, flags = copied
    egal_bench("compare", *flags, "--init=16", "--strategies=random", "--replace", cwd=tmp_path, status=0)
    with pytest.warns(UserWarning, match="the folder also holds"):
        rounds = load(out)["rounds"]
    assert rounds.strategy.unique().tolist() == ["random"]
    assert rounds.labels.min() == 16
    assert set(load(out, settings="all")["rounds"].strategy) == {"random", "entropy", "egal"}


def test_an_edited_strategy_repeats_its_own_runs_alone(copied, tmp_path):
    out, flags = copied
    module = tmp_path / "mine.py"
    text = (
        "import egal_bench\n\n@egal_bench.strategy('mine')\ndef mine(pool, *, sign: float = {}):\n"
        "    return pool.rank(sign * pool.entropy)\n"
    )
    command = ["compare", *flags, "--strategies=random,mine:mine"]
    module.write_text(text.format("1.0"))
    egal_bench(*command, cwd=tmp_path, status=0)
    first, before = contents(out), stamps(out)
    module.write_text(text.format("-1.0"))
    process = egal_bench(*command, cwd=tmp_path, status=0)
    assert "2 of 4 runs in" in process.stderr
    assert "earlier version of your own code" in process.stderr
    assert untouched(before, out, "random")
    second = contents(out)
    bought = [
        tables["selections"].query("strategy == 'mine:mine' and round == 1").key.tolist() for tables in (first, second)
    ]
    assert bought[0] != bought[1]


def test_config_yaml_lists_every_group_and_repeats_the_folder(copied, tmp_path):
    out, flags = copied
    egal_bench("compare", *flags, "--lambda=0.3", "--strategies=egal", cwd=tmp_path, status=0)
    described = yaml.safe_load((out / "config.yaml").read_text())
    assert {group["strategy"] for group in described["groups"]} == {"random", "entropy", "egal", "egal(lambda=0.3)"}
    assert all(group["seeds"] == [0, 1] and group["settings"]["init"] == 15 for group in described["groups"])
    again = egal_bench("compare", "--config", out / "config.yaml", "--out", out, cwd=tmp_path, status=0)
    assert "2 of 2 runs are already in" in again.stderr


def test_two_phantoms_of_one_comparison_have_names_of_their_own(tmp_path):
    shards = ["phantom(brain,shortcut=0.9)", "phantom(brain)"]
    flags = [flag for flag in FLAGS if not flag.startswith(("--shortcut", "--strategies", "--seeds"))]
    egal_bench("compare", *shards, *flags, "--strategies=random", "--seeds=1", "--out=out", cwd=tmp_path, status=0)
    names = load(tmp_path / "out")["rounds"].dataset.unique().tolist()
    assert len(names) == 2
    assert all(name.startswith("phantom(") for name in names)
    assert sum("shortcut=0.9" in name for name in names) == 1


def test_selections_say_which_purchases_were_tied(finished):
    selections = load(finished[0])["selections"]
    assert not selections.query("round == 0").tied.any()
    assert selections.tied.dtype == bool
    assert isinstance(load(finished[0])["rounds"], pd.DataFrame)

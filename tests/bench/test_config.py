"""Configuration: who overrides whom, what is refused, and what makes two runs the same run."""

import pytest
import yaml

from egal_bench.config import MAX_CONFIG_BYTES, PRESETS, Config, flag_of, resolve
from egal_bench.errors import BenchError


def test_flags_override_file_preset_and_defaults_in_this_order(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("budget: 11\nrounds: 2\nlambda: 0.25\nempty-roi: zero\n")
    config = resolve({"rounds": "3"}, "quick", file)
    assert (config.rounds, config.budget, config.seeds) == (3, 11, PRESETS["quick"]["seeds"])
    assert (config.lambda_, config.empty_roi) == (0.25, "zero")
    assert config.threshold == Config().threshold


def test_written_config_yaml_gives_the_same_config(tmp_path):
    config = resolve({"shards": ("a", "b"), "lambda": "0.5", "out": "x"}, "paper")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    assert resolve({}, None, file) == config


def test_paper_preset_spends_570_labels():
    config = resolve({}, "paper")
    assert config.init + config.rounds * config.budget == 570


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"init": "0"}, "--init: .*greater than or equal to 1"),
        ({"seeds": "two"}, "--seeds: expected a number of seeds, a range such as 5:10, or a list"),
        ({"seeds": "3,3"}, "--seeds: .*none of them twice"),
        ({"part": "3/2"}, "--part: expected I/N"),
        ({"lambda": "-1"}, "--lambda: "),
        ({"lambda": "nan"}, "--lambda: .*finite"),
        ({"threshold": "1.5"}, "--threshold: "),
        ({"regime": "frozne"}, "--regime: .*'finetune' or 'frozen'"),
        ({"strategies": "random,random"}, "--strategies: 'random' is named twice"),
        ({"shards": ("a", "b", "b")}, "--shards: 'b' is named twice"),
        ({"strategies": ""}, "--strategies: .*at least 1"),
        ({"empty_roi": "skip"}, "--empty-roi: .*'zero', 'mean' or 'exclude'"),
        ({"explain_convention": "gradcam"}, "--explain-convention: .*did you mean 'grad-cam'"),
        ({"device": "cuda:first"}, "--device: "),
        ({"ray_address": "head:6379"}, "--ray-address: belongs to --engine ray"),
        ({"engine": "ray", "ray_address": "http://user:secret@head"}, "--ray-address: "),
        ({"engine": "ray", "gpus_per_run": "2"}, "--gpus-per-run: .*less than or equal to 1"),
        ({"buget": "3"}, "unknown field 'buget': did you mean 'budget'"),
    ],
)
def test_bad_value_is_refused_by_its_flag(flags, message):
    with pytest.raises(BenchError, match=message):
        resolve(flags)


def test_commas_inside_a_specification_do_not_separate_strategies():
    config = resolve({"strategies": "egal(lambda=0.3,empty-roi=zero), random"})
    assert config.strategies == ("egal(lambda=0.3,empty-roi=zero)", "random")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']"])
def test_file_that_is_no_configuration_is_named(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(BenchError, match=r"c\.yaml"):
        resolve({}, None, file)


def test_huge_file_is_not_read(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(BenchError, match=rf"c\.yaml: larger than {MAX_CONFIG_BYTES} bytes"):
        resolve({}, None, file)


def test_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(BenchError, match="unknown preset 'papr': did you mean 'paper'"):
        resolve({}, "papr")


def test_every_field_is_described_for_its_flag():
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert flag_of(name).startswith("--")
    assert flag_of("lambda_") == "--lambda"


def test_training_options_are_refused_where_nothing_is_trained():
    for name, value in {"explain_loss": 0.5, "early_stop": 0.2, "class_balance": True, "cuda_graphs": True}.items():
        with pytest.raises(BenchError, match=f"{flag_of(name)}: belongs to --regime finetune"):
            resolve({"regime": "frozen", name: value})


def test_compile_is_read_as_it_is_written_in_yaml(tmp_path):
    for word in ("on", "off", "auto"):
        (tmp_path / "config.yaml").write_text(f"compile: {word}\n")
        assert resolve({}, file=tmp_path / "config.yaml").compile == word
    (tmp_path / "config.yaml").write_text("precision: on\n")
    with pytest.raises(BenchError, match=r"\(got True\)$"):
        resolve({}, file=tmp_path / "config.yaml")


def test_a_refused_switch_has_no_value_to_repeat():
    with pytest.raises(BenchError, match=r"choose that regime$"):
        resolve({"regime": "frozen", "cuda_graphs": True})


@pytest.mark.parametrize(
    ("text", "seeds"), [(3, (0, 1, 2)), ("2", (0, 1)), ("5:8", (5, 6, 7)), ("7,3", (3, 7)), ("0:2,9", (0, 1, 9))]
)
def test_seeds_are_a_number_a_range_or_a_list(text, seeds):
    assert resolve({"seeds": text}).seed_ids == seeds

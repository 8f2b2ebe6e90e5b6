"""The presets of the paper: docs/paper.md says of every setting what `--preset author` does."""

import re
from pathlib import Path

import pytest

from egal_bench.config import PRESETS, Config, flag_of, resolve
from egal_bench.learners import episodes, training
from egal_bench.models import heads
from egal_bench.strategies import find

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
CONSTANTS = {
    "EMBEDDING": heads.EMBEDDING, "FACTOR": episodes.FACTOR, "PATIENCE": episodes.PATIENCE, "CLIP": training.CLIP,
}  # fmt: skip
OF_COMPARISON = {"strategies", "seeds", "regime"}  # what the presets add to compare, without a row of its own


def rows() -> dict[str, tuple[str, str]]:
    """Return the columns `author's code` and `here` of the table, by setting."""
    lines = PAGE[PAGE.index("| setting | author") :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {setting: (author, here.strip("`")) for setting, author, here in cells}


def flags() -> dict[str, str]:
    """Return the flags of the column `here`, by field of Config; "" for a switch."""
    written = [here for _, here in rows().values() if here.startswith("--")]
    fields = {flag_of(name): name for name in Config.model_fields}
    return {fields[flag]: value for flag, _, value in (text.partition(" ") for text in written)}


@pytest.mark.parametrize("setting", rows())
def test_every_row_of_the_table_is_what_the_preset_does(setting):
    author, here = rows()[setting]
    config = resolve({}, "author")
    flag, _, value = here.partition(" ")
    if flag.startswith("--"):
        field = next(name for name in Config.model_fields if flag_of(name) == flag)
        assert getattr(config, field) == getattr(resolve({"head": "prototypical", field: value or True}), field)
    elif "=" in here:
        name, _, number = here.partition(" = ")
        assert CONSTANTS[name] == float(number)
    else:
        assert (setting, here) == ("augmentation", "none")
    if re.fullmatch(r"[\d.]+", author):
        assert float(author) == float(here.rpartition(" ")[2])


def test_table_has_a_row_for_every_setting_of_the_preset():
    assert set(flags()) == set(PRESETS["author"]) - OF_COMPARISON


def test_presets_spend_the_labels_that_the_page_says():
    for preset, text in {"paper": "150 + 7 x 60 = 570", "author": "150 + 6 x 120 = 870"}.items():
        config = resolve({}, preset)
        spent = config.init + config.rounds * config.budget
        assert f"{config.init} + {config.rounds} x {config.budget} = {spent}" == text
        assert f"--preset {preset} " in PAGE
        assert text in PAGE


@pytest.mark.parametrize("preset", ["paper", "author"])
def test_presets_know_nothing_that_a_study_could_not_know(preset):
    config = resolve({}, preset)
    assert config.head == "prototypical"
    assert config.prototypes == "all"
    for specification in config.strategies:
        assert "pool-labels" not in find(specification, config).needs


def test_flags_that_the_page_names_override_the_presets():
    assert resolve({"head": "linear"}, "paper").head == "linear"
    assert resolve({"explain_layer": "none"}, "author").explain_layer is None
    assert resolve({"head": "linear", "explain_layer": "none"}, "author").head == "linear"


def test_paper_scores_by_the_sum_of_entropy_and_misalignment():
    config = resolve({}, "paper")
    assert "egal" in config.strategies
    assert (config.lambda_, config.overlap, config.explain_layer) == (1.0, "thresholded", None)
    assert f"{config.epochs} epochs of {config.episodes} episodes" in PAGE


def test_epsilon_of_the_authors_dice_changes_it_by_less_than_the_page_says():
    """(2I + ε)/(S + ε) − 2I/S = ε·(S − 2I)/(S·(S + ε)), at most ε/S, and S is at least one pixel."""
    epsilon = float(re.search(r"ε = (1e-6)", PAGE)[1])
    bound = float(re.search(r"changes Dice by less than (1e-6)", PAGE)[1])
    for total in (1.0, 2.5, 1000.0):
        for intersection in (0.0, total / 4, total / 2):
            change = (2 * intersection + epsilon) / (total + epsilon) - 2 * intersection / total
            assert abs(change) < bound


def test_entropy_of_three_prototypes_has_the_bound_that_the_page_says():
    from math import exp

    lowest = float(re.search(r"no probability is below (0\.\d+)", PAGE)[1])
    assert exp(-2) / (exp(-2) + 2 * exp(0)) > lowest > exp(-2) / (exp(-2) + 2 * exp(0)) - 0.01

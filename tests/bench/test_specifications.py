"""Specifications such as `egal(lambda=0.3)`: read back as they are written, and refused by name."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from egal_bench.errors import BenchError
from egal_bench.specifications import Specification, split_list, validated, written


class Schema(BaseModel):
    """Parameters of every kind that a strategy may declare."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lambda_: Annotated[float, Field(ge=0)] = 1.0
    empty_roi: Literal["zero", "mean"] = "mean"
    neighbours: Annotated[int, Field(ge=1)] = 5
    centred: bool = False


names = st.from_regex(r"[a-z][a-z0-9_.:-]{0,12}", fullmatch=True)
# 12 significant digits are written
numbers = st.floats(0, 1e6).map(lambda value: float(f"{value:.12g}"))
schemas = st.builds(
    Schema, lambda_=numbers, empty_roi=st.sampled_from(["zero", "mean"]), neighbours=st.integers(1, 10**9),
    centred=st.booleans(),
)  # fmt: skip


@given(names, schemas)
def test_written_specification_is_read_back(name, parameters):
    specification = Specification.parse(written(name, parameters))
    assert specification.name == name
    assert validated(specification, Schema, {}) == parameters


@given(names, schemas)
def test_written_form_is_canonical(name, parameters):
    text = written(name, parameters)
    assert written(name, validated(Specification.parse(text), Schema, {})) == text
    assert " " not in text


def test_defaults_are_not_written_and_others_are_sorted():
    assert written("egal", Schema()) == "egal"
    assert written("egal", Schema(lambda_=0.3, empty_roi="zero")) == "egal(empty-roi=zero,lambda=0.3)"
    assert written("egal", Schema(centred=True)) == "egal(centred=true)"


@given(st.lists(st.tuples(names, schemas), min_size=1, max_size=4))
def test_commas_within_parentheses_do_not_separate(specifications):
    texts = [written(name, parameters) for name, parameters in specifications]
    assert split_list(",".join(texts)) == texts
    assert split_list(" , ".join(texts) + ",") == texts


def test_spaces_and_underscores_do_not_matter():
    plain = Specification.parse("egal(empty-roi=zero,lambda=0.3)")
    assert Specification.parse("  egal ( empty_roi = zero , lambda = 0.3 ) ") == plain


def test_flags_give_what_the_specification_leaves_out():
    specification = Specification.parse("egal(lambda=0.3)")
    parameters = validated(specification, Schema, {"lambda_": 2.0, "empty_roi": "zero", "normalise": "rank"})
    assert (parameters.lambda_, parameters.empty_roi, parameters.neighbours) == (0.3, "zero", 5)


@pytest.mark.parametrize(
    "text",
    [
        "", "egal(", "egal)", "(lambda=1)", "egal(lambda)", "egal(=1)", "egal(lambda=)", "egal(lambda=1)x",
        "egal(lambda=1,lambda=2)", "egal(empty_roi=a,empty-roi=b)",
    ],
)  # fmt: skip
def test_text_that_does_not_fit_is_named(text):
    with pytest.raises(BenchError) as error:
        Specification.parse(text)
    assert str(error.value).startswith(repr(text))


def refusal(text: str) -> str:
    """Return the message with which `text` is refused, "" where it is read."""
    try:
        Specification.parse(text)
    except BenchError as error:
        return str(error)
    return ""


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text):
    assert len(refusal(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("egal(lamda=1)", r"unknown parameter of egal 'lamda': did you mean 'lambda'\?"),
        ("egal(lambda=-1)", r"^egal\(lambda=-1\): .*greater than or equal to 0"),
        ("egal(lambda=much)", r"^egal\(lambda=much\): .*number"),
        ("egal(empty-roi=skip)", r"^egal\(empty-roi=skip\): .*'zero' or 'mean'"),
        ("egal(neighbours=2.5)", r"^egal\(neighbours=2\.5\): .*integer"),
    ],
)
def test_wrong_parameter_is_named_as_the_user_wrote_it(text, message):
    with pytest.raises(BenchError, match=message):
        validated(Specification.parse(text), Schema, {})


def test_parameters_of_a_strategy_without_any_are_refused():
    with pytest.raises(BenchError, match="random takes no parameters, so 'k' is not one of them"):
        validated(Specification.parse("random(k=3)"), BaseModel, {})

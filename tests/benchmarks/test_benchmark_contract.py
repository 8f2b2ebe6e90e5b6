"""The contract of every registered benchmark: a case, a check, a reason, a name, and no figures but in the table."""

import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from benchmarks import table
from benchmarks.__main__ import selected
from benchmarks.suites import BENCHMARKS

# a measured figure: a decimal number, a number with a unit of time, memory or share, or a factor
FIGURE = re.compile(
    r"\d\.\d|\d ?(%|×(?!\d))|\b\d[\d,]* (µs|ms|s|seconds?|minutes?|kB|MB|GB|times|percent)\b|^ *\|", re.MULTILINE
)


@pytest.fixture(params=BENCHMARKS)
def benchmark_of_suites(request):
    """Each registered benchmark."""
    return BENCHMARKS[request.param]


def test_it_has_inputs_and_rounds(benchmark_of_suites):
    assert benchmark_of_suites.inputs
    assert all(label == label.strip() and "|" not in label for label in benchmark_of_suites.inputs)
    assert benchmark_of_suites.rounds >= 1


def test_its_name_and_its_suite_select_it_on_the_command_line(benchmark_of_suites):
    assert selected([benchmark_of_suites.name]) == [benchmark_of_suites]
    assert benchmark_of_suites in selected([benchmark_of_suites.suite])
    assert benchmark_of_suites in selected([])


def test_its_docstring_has_subject_command_and_reason(benchmark_of_suites):
    subject, command, *explanation = inspect.getdoc(benchmark_of_suites.build).split("\n\n")
    assert subject.endswith(".")
    assert command.split() == ["python", "-m", "benchmarks", benchmark_of_suites.name]
    assert any(re.match(r"Why\b[^:]*: \w", paragraph) for paragraph in explanation)


def test_its_docstring_holds_no_figures(benchmark_of_suites):
    assert FIGURE.search(inspect.getdoc(benchmark_of_suites.build)) is None


def test_its_check_can_fail(benchmark_of_suites):
    build = benchmark_of_suites.build
    module = ast.parse(inspect.getsource(inspect.getmodule(build)))
    assert all(checks_of(build.__name__, module))


@pytest.mark.parametrize(
    ("text", "is_figure"),
    [
        ("It takes 3.5 µs.", True), ("It is 12× as fast.", True), ("264 MB, of which", True), ("17 % of it", True),
        ("| acquire | 10 |", True), ("takes 30 times as long", True), ("batches of 64 at 7×7→224²", False),
        ("a 64-bit fingerprint in 2 threads", False), ("float32 and SHA-256", False),
    ],
)  # fmt: skip
def test_a_figure_is_told_from_a_size(text, is_figure):
    assert (FIGURE.search(text) is not None) == is_figure


MODULE = """
def build(shape, home):
    def check():
        {check}
    return Case(contenders={{}}, samples=1, check={name})

def helper():
    {helper}

def another(shape, home):
    def check():
        assert home
    return Case(contenders={{}}, samples=1, check=check)
"""


@pytest.mark.parametrize(
    ("can_fail", "parts"),
    [
        (True, {"check": "assert shape"}),
        (True, {"check": "torch.testing.assert_close(shape, home)"}),
        (True, {"check": "helper()", "helper": "assert 1"}),
        (True, {"name": "lambda: helper()", "helper": "assert 1"}),
        (False, {}),
        (False, {"check": "helper()"}),
        (False, {"name": "lambda: None"}),
    ],
)
def test_a_check_that_asserts_nothing_is_found(can_fail, parts):
    module = ast.parse(MODULE.format(**{"check": "pass", "name": "check", "helper": "pass"} | parts))
    assert checks_of("build", module) == [can_fail]


def test_every_row_of_the_page_belongs_to_a_registered_case():
    registered = {(name, label) for name, benchmark in BENCHMARKS.items() for label in benchmark.inputs}
    assert set(table.cases()) <= registered


def checks_of(builder: str, module: ast.Module) -> list[bool]:
    """Return, for each Case that the function `builder` of `module` constructs, whether its check asserts something."""
    results = []
    for function in mentioned_functions(functions_of(module)[builder], module):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Case":
                (check,) = (keyword.value for keyword in node.keywords if keyword.arg == "check")
                results.append(asserts(check, function, module))
    assert results, f"{builder} constructs no Case"
    return results


def asserts(check: ast.expr, function: ast.FunctionDef, module: ast.Module) -> bool:
    """Return whether `check`, an expression in `function`, reaches an assert statement or a function `assert…`."""
    local = {node.name: node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node != function}
    body = local.get(check.id, check) if isinstance(check, ast.Name) else check
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Attribute) and node.attr.startswith("assert"))
        or (isinstance(node, ast.Name) and node.id.startswith("assert"))
        for part in mentioned_functions(body, module)
        for node in ast.walk(part)
    )


def mentioned_functions(start: ast.AST, module: ast.Module) -> Iterator[ast.AST]:
    """Yield `start` and, once each, the functions of `module` that it mentions by name, or that they mention."""
    functions, pending = functions_of(module), [start]
    while pending:
        part = pending.pop()
        yield part
        names = {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}
        pending += [functions.pop(name) for name in names & functions.keys()]


def functions_of(module: ast.Module) -> dict[str, ast.FunctionDef]:
    """Return the functions at the top level of `module`, by name."""
    return {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}

"""What every op must do. A new op passes once it is in `OPS` and has its entry in `CONTRACTS` (op_contracts.py)."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import egal_kernels
from egal_kernels.shared.backends import BACKENDS, OPS, load
from kernels.op_contracts import CONTRACTS
from kernels.triton_tools import TARGETS, assert_passes_interpreted, compile_ahead, spills

each_op = pytest.mark.parametrize("op", OPS)
many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])


def test_every_op_is_registered_and_has_a_contract():
    packages = {file.parent.name for file in Path(egal_kernels.__file__).parent.glob("*/reference.py")}
    assert packages == set(OPS) == CONTRACTS.keys()


@each_op
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_op_has_a_module_for_each_backend(op, backend):
    assert load(op, backend).__name__ == f"egal_kernels.{op}.{backend}"


@each_op
@many
@given(st.data())
def test_the_reference_agrees_with_an_oracle_in_float64(op, data):
    problem = data.draw(CONTRACTS[op].smooth)
    CONTRACTS[op].assert_true(problem, CONTRACTS[op].run(problem, "reference"))


@each_op
@many
@given(st.data())
def test_the_cpu_backend_equals_the_reference(op, data):
    problem = data.draw(CONTRACTS[op].exact)
    CONTRACTS[op].assert_equal(problem, CONTRACTS[op].run(problem, "cpu"), "cpu")


@each_op
def test_triton_in_its_interpreter_equals_the_reference(op):
    assert_passes_interpreted("op_contract_interpreted.py", 1, "-k", op)


@each_op
@pytest.mark.parametrize("target", TARGETS)
def test_the_triton_kernel_compiles_without_spills(op, target, tmp_path):
    module = load(op, "triton")
    assert spills(compile_ahead(module.kernel, CONTRACTS[op].launch(module), target), target, tmp_path) == 0


@each_op
@settings(deadline=None, max_examples=3, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_graph_compiled_by_pytorch_gives_the_eager_result(op, data):
    torch.compiler.reset()
    problem = data.draw(CONTRACTS[op].exact)
    eager = CONTRACTS[op].run(problem, "cpu")
    compiled = CONTRACTS[op].run(problem, "cpu", compiled=True)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=0, msg=name)

"""The part of the contract of every op for Triton's interpreter; test_op_contract.py runs it in a process of its own.

Outputs and scratch start as NaN: PyTorch fills uninitialised memory so in its deterministic mode.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egal_kernels.shared.backends import OPS, load
from kernels.op_contracts import CONTRACTS

torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("op", OPS)
@settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_triton_equals_the_reference(op, data):
    assert load(op, "triton").INTERPRETED, "set TRITON_INTERPRET=1"
    problem = data.draw(CONTRACTS[op].exact)
    CONTRACTS[op].assert_equal(problem, CONTRACTS[op].run(problem, "triton"), "triton")

"""The public names of egal_kernels, and what can be imported without PyTorch."""

import egal_kernels
from egal_kernels.conventions import CONVENTIONS
from egal_kernels.methods import METHODS
from egal_kernels.shared.recipes import RECIPES


def test_every_public_name_can_be_imported():
    for name in egal_kernels.__all__:
        assert getattr(egal_kernels, name).__name__ == name


def test_names_of_conventions_and_methods_need_no_torch(run_script):
    script = """
import sys
from egal_kernels import ArgumentError
from egal_kernels.conventions import CONVENTIONS
from egal_kernels.methods import METHODS
assert issubclass(ArgumentError, ValueError)
print("torch" in sys.modules, *CONVENTIONS, *METHODS)
"""
    assert run_script(script)[0].split() == ["False", *CONVENTIONS, *METHODS]


def test_every_named_convention_has_a_recipe():
    assert RECIPES.keys() == CONVENTIONS.keys()

"""A launch binds the arguments of a kernel once; later calls go straight to the compiled kernel."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux only)")

from egal_kernels.shared.triton_launch import Launch


class Kernel:
    """A kernel as Triton gives it: it records how it was called, and returns itself as the compiled kernel."""

    arg_names = ("x", "size", "out")

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        def run(*positional, **named):
            self.calls.append((grid, positional, named))
            return self

        return run


@pytest.fixture
def launch():
    return Launch(Kernel(), {"size": 3, "unused": 4}, {"num_warps": 2})


def aligned(n=8):
    return torch.zeros(n)


def test_the_first_call_names_arguments_and_options(launch):
    x, out = aligned(), aligned()
    launch(5, {"x": x, "out": out, "other": None})
    ((grid, positional, named),) = launch.kernel.calls
    assert (grid, positional) == ((5,), ())
    assert list(named) == ["x", "size", "out", "num_warps"]
    assert (named["x"] is x, named["size"], named["out"] is out, named["num_warps"]) == (True, 3, True, 2)


def test_later_calls_pass_new_tensors_in_the_order_of_the_kernel(launch):
    launch(5, {"x": aligned(), "out": aligned()})
    x, out = aligned(), aligned()
    launch(7, {"out": out, "x": x})
    grid, positional, named = launch.kernel.calls[-1]
    assert (grid, named) == ((7, 1, 1), {})
    assert [positional[0] is x, positional[1], positional[2] is out] == [True, 3, True]


def test_a_program_takes_several_samples_and_learns_how_many_there_are():
    kernel = Kernel()
    kernel.arg_names = ("x", "batch")
    launch = Launch(kernel, {}, {}, samples=4)
    for _ in range(2):  # through Triton, then directly
        launch(9, {"x": aligned()})
    (first, _, named), (later, positional, _) = kernel.calls
    assert (first, named["batch"]) == ((3,), 9)
    assert (later, positional[1]) == ((3, 1, 1), 9)


def test_tensors_that_are_not_aligned_are_bound_anew(launch):
    tensors = {"x": aligned(), "out": aligned()}
    odd = tensors | {"x": aligned()[1:]}
    launch(1, odd)
    launch(1, tensors)  # the kernel that was compiled for the odd address must not serve others
    launch(1, tensors)
    launch(1, odd)
    assert [bool(named) for _, _, named in launch.kernel.calls] == [True, True, False, True]

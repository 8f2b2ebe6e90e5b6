"""Explanations of any head: gradients of the part of a network after a feature map, and of that part only."""

from egal_kernels.explanation.linear import linear_head
from egal_kernels.explanation.op import explain
from egal_kernels.explanation.types import Explanation

__all__ = ["Explanation", "explain", "linear_head"]

"""Explanations of any head: gradients of the part of a network behind a feature map, and of that part only."""

from egal_kernels.explanation.gradients import Explanation, explain
from egal_kernels.explanation.linear import linear_head

__all__ = ["Explanation", "explain", "linear_head"]

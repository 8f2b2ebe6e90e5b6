"""The linear head of the frozen regime: multinomial logistic regression, fitted to convergence."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from egal_bench.errors import BenchError

CORRECTIONS = 20  # gradients that L-BFGS remembers: with fewer it takes more steps, with more each step costs more


def logistic_regression(x: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight [K, C] and bias [K] that minimise mean NLL + l2/2·|W|², float64.

    L-BFGS starts from zero and runs to convergence.

    Args:
        x: float [N, C].
        labels: int [N]; a class without samples keeps a low probability.
        classes: K.
        l2: penalty.

    Raises:
        BenchError: L-BFGS did not converge.

    The minimum lies in the span of the samples (representer theorem): W = c·X. With the Gram matrix XXᵀ = LLᵀ and
    v = c·L, the scores are v·Lᵀ and |W| = |v|: the same problem with min(N, C) features instead of C.
    """
    x = np.asarray(x, np.float64)
    if len(x) >= x.shape[1]:
        return minimise(x, labels, classes, l2)
    gram = x @ x.T
    gram[np.diag_indices_from(gram)] += 1e-12 * (gram.trace() or 1.0)  # copies of a sample make it singular
    lower = np.linalg.cholesky(gram)
    v, bias = minimise(lower, labels, classes, l2)
    return solve_triangular(lower, v.T, lower=True, trans="T").T @ x, bias


def log_probabilities(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the log-probability of each class, [N, K], for features [N, C], weight [K, C] and bias [K]."""
    scores = x @ weight.T + bias
    scores -= scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def minimise(
    x: np.ndarray, labels: np.ndarray, classes: int, l2: float, *, scale: np.ndarray | float = 1.0,
    start: np.ndarray | None = None, tolerance: float = 1e-7,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the weight [K, C] and bias [K] that minimise mean NLL + l2/2·|scale·W|².

    Args:
        x: float64 [N, C].
        labels: int [N].
        classes: K.
        l2: penalty.
        scale: scale of each feature's weights in the penalty, [C] or one number.
        start: weight and bias side by side, [K, C + 1]; None: zeros.
        tolerance: largest component of the gradient at the end.

    Raises:
        BenchError: L-BFGS did not converge.
    """
    one_hot = np.eye(classes)[:, labels]  # [K, N]: with classes first, products and sums follow the rows of memory
    transposed = np.ascontiguousarray(x.T)
    shape = (classes, x.shape[1] + 1)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat.reshape(shape)[:, :-1], flat.reshape(shape)[:, -1:]
        z = w @ transposed + b  # [K, N]
        z -= z.max(axis=0)
        exp = np.exp(z)
        total = exp.sum(axis=0)
        error = (exp / total - one_hot) / len(x)
        scaled = scale * w
        gradient = np.hstack([error @ x + l2 * scale * scaled, error.sum(axis=1, keepdims=True)])
        nll = (np.log(total).sum() - (one_hot * z).sum()) / len(x)
        return nll + l2 / 2 * (scaled * scaled).sum(), gradient.ravel()

    options = {"maxiter": 5000, "maxcor": CORRECTIONS, "gtol": tolerance, "ftol": 0.0}
    result = minimize(
        loss, (np.zeros(shape) if start is None else start).ravel(), jac=True, method="L-BFGS-B", options=options
    )
    if not result.success:
        raise BenchError(f"the linear head did not converge ({result.message}); raise --l2")
    solved = result.x.reshape(shape)
    return solved[:, :-1], solved[:, -1]

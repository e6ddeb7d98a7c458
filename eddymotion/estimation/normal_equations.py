# SPDX-License-Identifier: Apache-2.0
"""The normal equations of a joint step, and their solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from eddymotion.machine.parallel import parallel_map
from eddymotion.robust import sandwich

DAMPING = 1e-3
"""Added to the diagonal of the normal matrix, relative to it."""

ROWS_OF_BAND = 128
"""Of a normal matrix, which a thread sums at a time."""


class GramMatrix:
    """``Σ A Aᵀ`` of parts that come one after the other, without a copy for each.

    Bands of rows are summed by threads, each in the order of the parts: the sum does not depend on
    the number of threads.

    Parameters
    ----------
    size : int
        Rows of each part.
    n_threads : int
    """

    def __init__(self, size: int, n_threads: int = 1) -> None:
        self.lower, self.n_threads = np.zeros((size, size)), n_threads

    def add(self, parts: Sequence[np.ndarray]) -> None:
        """Add the products of parts (size, …) with themselves, below the diagonal only."""

        def add_to(first: int) -> None:
            rows = slice(first, first + ROWS_OF_BAND)
            for part in parts:
                self.lower[rows, : rows.stop] += part[rows] @ part[: rows.stop].T

        bands = range(0, len(self.lower), ROWS_OF_BAND)
        parallel_map(add_to, reversed(bands), n_threads=self.n_threads)

    def whole(self) -> np.ndarray:
        """Return the sum, (size, size); nothing can be added afterwards."""
        for first in range(0, len(self.lower), ROWS_OF_BAND):
            rows = slice(first, first + ROWS_OF_BAND)
            self.lower[: rows.start, rows] = self.lower[rows, : rows.start].T
        return self.lower


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """The normal equations of N volumes with p unknowns each, at some poses and fields.

    Parameters
    ----------
    cost : float
        Mean −log-likelihood of a point.
    gradients : (B, Np) array
        ``G``, what each block of points adds to it.
    hessian : (Np, Np) array
        ``H``
    prior_gradient : (N, p) array
    prior_precision : (p, N, N) or (p, 1, 1) array
        What is known beforehand adds to ``G`` and, for each unknown between volumes, to ``H``.
    """

    cost: float
    gradients: np.ndarray
    hessian: np.ndarray
    prior_gradient: np.ndarray
    prior_precision: np.ndarray

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve for one or more right sides (Np, …), a little damped."""
        factor, stiff = self._factored()
        solution = linalg.cho_solve((factor, True), right)
        solution[stiff] = 0.0
        return solution

    def inverse_diagonal(self) -> np.ndarray:
        """Return the diagonal of what :meth:`solve` multiplies with, (N, p)."""
        factor, stiff = self._factored()
        inverse, _ = linalg.lapack.dpotri(factor, lower=True, overwrite_c=True)
        return np.where(stiff, 0.0, np.diag(inverse)).reshape(self.n_volumes, -1)

    def _factored(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the Cholesky factor (lower) of the damped matrix, and what nothing moves."""
        diagonal = np.diag(self.hessian).copy()
        diagonal[diagonal <= 1e-9 * diagonal.max()] = np.inf  # volumes that nothing moves
        stiff = np.isinf(diagonal)
        for damping in (DAMPING, 100 * DAMPING):
            damped = self.hessian.copy()
            damped[np.diag_indices_from(damped)] += np.where(stiff, 0.0, damping * diagonal)
            self._add_prior(damped)
            damped[stiff] = damped[:, stiff] = 0.0
            damped[stiff, stiff] = 1.0
            try:  # transposed it has the order that LAPACK works in: no copy
                return linalg.cholesky(damped.T, lower=True, overwrite_a=True), stiff
            except linalg.LinAlgError:  # rounding
                continue
        raise linalg.LinAlgError("the normal equations of the motion are singular")

    def step(self) -> np.ndarray:
        """``δ`` of all volumes, (N, p), without what they have in common."""
        right = self.gradients.sum(axis=0) + self.prior_gradient.ravel()
        steps = self.solve(right).reshape(self.n_volumes, -1)
        return steps - steps.mean(axis=0)

    def gain(self) -> float:
        """How much of the cost one step is to take away, in the units of ``H``."""
        right = self.gradients.sum(axis=0) + self.prior_gradient.ravel()
        return float(right @ self.solve(right))

    def covariances(self) -> np.ndarray:
        """Covariance of the error of each volume's unknowns, (N, p, p), by a sandwich."""
        parts = self.solve(self.gradients.T).reshape(self.n_volumes, -1, len(self.gradients))
        return sandwich(parts - parts.mean(axis=0), n_fitted=1)

    def _add_prior(self, matrix: np.ndarray) -> None:
        between = matrix.reshape(self.n_volumes, self.n_unknowns, self.n_volumes, -1)
        for unknown, precision in enumerate(self.prior_precision):
            if precision.any():
                between[:, unknown, :, unknown] += precision

    @property
    def n_volumes(self) -> int:
        """Number of volumes ``N``."""
        return len(self.prior_gradient)

    @property
    def n_unknowns(self) -> int:
        """Unknowns of one volume ``p``."""
        return self.prior_gradient.shape[1]

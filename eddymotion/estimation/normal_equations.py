# SPDX-License-Identifier: Apache-2.0
"""The normal equations of a joint step, and their solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

DAMPING = 1e-3
"""Added to the diagonal of the normal matrix, relative to it."""


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
        diagonal = np.diag(self.hessian).copy()
        diagonal[diagonal <= 1e-9 * diagonal.max()] = np.inf  # volumes that nothing moves
        stiff = np.isinf(diagonal)
        for damping in (DAMPING, 100 * DAMPING):
            damped = self.hessian + np.diag(np.where(stiff, 0.0, damping * diagonal))
            self._add_prior(damped)
            damped[stiff] = damped[:, stiff] = 0.0
            damped[stiff, stiff] = 1.0
            try:
                solution = linalg.solve(damped, right, assume_a="pos")
            except linalg.LinAlgError:  # rounding
                continue
            solution[stiff] = 0.0
            return solution
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
        """Covariance of the error of each volume's unknowns, (N, p, p), by a sandwich over blocks.

        With ``G_b`` what block ``b`` adds to the right side, ``H⁻¹ G_b`` is what it adds to the
        solution, and their scatter is the covariance of the solution (Liang & Zeger 1986,
        Biometrika 73:13).
        """
        parts = self.solve(self.gradients.T).reshape(self.n_volumes, -1, len(self.gradients))
        parts = parts - parts.mean(axis=0)
        n_blocks = parts.shape[2]
        return np.einsum("nkb,nlb->nkl", parts, parts) * (n_blocks / max(n_blocks - 1, 1))

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

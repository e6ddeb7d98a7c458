# SPDX-License-Identifier: Apache-2.0
"""The normal equations of a joint step, and their solution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy

from eddymotion.estimation.equations.unknowns import PriorTerms, Unknowns
from eddymotion.machine.parallel import parallel_map
from eddymotion.registration.solver import Evaluation
from eddymotion.robust import sandwich

DAMPING = 1e-3
"""Added to the diagonal of the normal matrix, relative to it."""

ROWS_OF_BAND = 128
"""Rows of a normal matrix that a thread sums at a time."""

NOT_SHOWN = 1e-6
"""Relative to the diagonal, for directions that a volume does not show."""

COLUMNS_AT_A_TIME = 1024
"""Columns of parts that are gathered before they are multiplied."""


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
        self._waiting: list[np.ndarray] = []

    def add(self, part: np.ndarray) -> None:
        """Add the product of a part (size, …) with itself.

        Narrow parts wait for each other: the sum is written once for all of them.
        """
        self._waiting.append(part)
        if sum(part.shape[1] for part in self._waiting) >= COLUMNS_AT_A_TIME:
            self._sum()

    def _sum(self) -> None:
        """Sum what waits, below the diagonal only."""
        alone = len(self._waiting) == 1
        part = self._waiting[0] if alone else np.concatenate(self._waiting, axis=1)
        self._waiting.clear()

        def add_to(first: int) -> None:
            rows = slice(first, first + ROWS_OF_BAND)
            self.lower[rows, : rows.stop] += part[rows] @ part[: rows.stop].T

        bands = range(0, len(self.lower), ROWS_OF_BAND)
        parallel_map(add_to, reversed(bands), n_threads=self.n_threads)

    def whole(self) -> np.ndarray:
        """Return the sum, (size, size); nothing can be added afterwards."""
        if self._waiting:
            self._sum()
        for first in range(0, len(self.lower), ROWS_OF_BAND):
            rows = slice(first, first + ROWS_OF_BAND)
            self.lower[: rows.start, rows] = self.lower[rows, : rows.start].T
        return self.lower


def give_own_blocks(products: np.ndarray, own: np.ndarray) -> None:
    """Change ``A Aᵀ`` (Np, Np), in place, as if the columns of each volume had other products.

    Parameters
    ----------
    products : (Np, Np) array
        From some of the points.
    own : (N, p, p) array
        Its blocks of single volumes, from more of them.
    """
    n, size = own.shape[:2]
    between = products.reshape(n, size, n, size)
    turns = turns_between(np.einsum("iaib->iab", between), own)
    for volume, turn in enumerate(turns):
        rows = (turn @ between[volume][:, : volume + 1].reshape(size, -1)).reshape(size, -1, size)
        rows = np.einsum("ajb,jcb->jac", rows, turns[: volume + 1], optimize=True)
        rows[volume] = (rows[volume] + rows[volume].T) / 2
        between[volume, :, : volume + 1] = rows.transpose(1, 0, 2)
        between[:volume, :, volume] = rows[:volume].transpose(0, 2, 1)


def turns_between(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return ``T``, near one, with ``T A Tᵀ = B`` for each of n pairs ``A``, ``B``: (n, p, p)."""
    scale = np.sqrt(np.einsum("naa->na", others))
    scale = np.where(scale > 0, scale, 1.0)[:, :, None] * np.eye(others.shape[1])
    inverse = np.linalg.inv(scale)
    held = NOT_SHOWN * np.eye(others.shape[1])
    some, others = (inverse @ one @ inverse + held for one in (some, others))
    root = _powers(others, 0.5)
    return scale @ root @ _powers(root @ some @ root, -0.5) @ root @ inverse


def _powers(matrices: np.ndarray, exponent: float) -> np.ndarray:
    """Return the powers of positive symmetric matrices, (n, p, p)."""
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * values[:, None] ** exponent) @ vectors.swapaxes(1, 2)


@dataclass(frozen=True, eq=False)
class NormalEquations(Evaluation):
    """The normal equations of N volumes with p columns each, at some motion.

    Parameters
    ----------
    cost : float
        Mean −log-likelihood of a point.
    n_points : int
        Of which the mean is taken.
    hessian : (Np, Np) array
        ``H``
    gradients : (B, Np) array
        ``G``, what each part of the brain adds to it.
    unknowns : Unknowns
        What the columns are.
    priors : dict of PriorTerms
        What is known of some blocks beforehand.
    like : NormalEquations, optional
        Others with the same matrix, which is factored once.
    """

    gradients: np.ndarray
    unknowns: Unknowns
    priors: Mapping[str, PriorTerms] = field(default_factory=dict)
    like: NormalEquations | None = None

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve for one or more right sides (Np, …), a little damped: steps (Np, …)."""
        factor, stiff = self.factor
        right = np.asarray_chkfinite(right)  # SciPy would look through the factor each time
        if self.basis is None:
            solution = scipy.linalg.cho_solve((factor, True), right, check_finite=False)
        else:
            own = self.basis.T @ right
            own = scipy.linalg.cho_solve((factor, True), own, check_finite=False)
            solution = self.basis @ own
        solution[stiff] = 0.0
        return solution

    def inverse_diagonal(self, name: str) -> np.ndarray:
        """Return the diagonal of the inverse that :meth:`solve` applies, of a block: (N, k)."""
        factor, stiff = self.factor
        inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=True)
        if self.basis is None:
            diagonal = np.diag(inverse)
        else:
            whole = np.tril(inverse) + np.tril(inverse, -1).T
            diagonal = self.basis.multiply(self.basis @ whole).sum(axis=1)
        found = np.where(stiff, 0.0, diagonal).reshape(self.n_volumes, -1)
        return found[:, self.unknowns.columns[name]]

    @cached_property
    def factor(self) -> tuple[np.ndarray, np.ndarray]:
        """The Cholesky factor (lower) of the damped matrix, and what nothing moves."""
        if self.like is not None:
            return self.like.factor
        diagonal = np.diag(self.hessian).copy()
        diagonal[diagonal <= 1e-9 * diagonal.max()] = np.inf  # volumes that nothing moves
        stiff = np.isinf(diagonal)
        for damping in (DAMPING, 100 * DAMPING):
            damped = self.hessian.copy()
            damped[np.diag_indices_from(damped)] += np.where(stiff, 0.0, damping * diagonal)
            self._add_prior(damped)
            damped[stiff] = damped[:, stiff] = 0.0
            damped[stiff, stiff] = 1.0
            if self.basis is not None:
                damped = self.basis.T @ damped @ self.basis
            try:  # transposed it has the order that LAPACK works in: no copy
                factor = scipy.linalg.cholesky(
                    damped.T, lower=True, overwrite_a=True, check_finite=False
                )
                return factor, stiff
            except scipy.linalg.LinAlgError:  # rounding
                continue
        raise scipy.linalg.LinAlgError("the normal equations of the motion are singular")

    @cached_property
    def right(self) -> np.ndarray:
        """The right side, (Np,)."""
        right = self.gradients.sum(axis=0)
        for name, prior in self.priors.items():
            right.reshape(self.n_volumes, -1)[:, self.unknowns.columns[name]] += prior.gradient
        return right

    def step(self, name: str | None = None) -> np.ndarray:
        """``δ`` of all volumes, (N, p), or of a block, without what they have in common."""
        steps = self.solve(self.right).reshape(self.n_volumes, -1)
        steps -= steps.mean(axis=0)
        return steps if name is None else steps[:, self.unknowns.columns[name]]

    def chance(self) -> np.ndarray:
        """Return a step (N, p) that noise may cause: what the parts add, with random signs."""
        signs = np.random.default_rng(0).choice([-1.0, 1.0], len(self.gradients))
        steps = self.solve(self.gradients.T @ signs).reshape(self.n_volumes, -1)
        return steps - steps.mean(axis=0)

    def gain(self) -> float:
        """How much of the cost one step is to take away, in the units of ``H``."""
        return float(self.right @ self.solve(self.right))

    def covariances(self, name: str) -> np.ndarray:
        """Covariance of the error of a block in each volume, (N, k, k), by a sandwich."""
        parts = self.solve(self.gradients.T).reshape(self.n_volumes, -1, len(self.gradients))
        parts = parts[:, self.unknowns.columns[name]]
        return sandwich(parts - parts.mean(axis=0), n_fitted=1)

    def _add_prior(self, matrix: np.ndarray) -> None:
        between = matrix.reshape(self.n_volumes, len(self.unknowns), self.n_volumes, -1)
        for name, prior in self.priors.items():
            first = self.unknowns.columns[name].start
            for column, precision in enumerate(prior.precision, first):
                between[:, column, :, column] += precision

    @cached_property
    def basis(self) -> scipy.sparse.csr_array | None:
        """Steps by unknowns, where these are fewer; see :meth:`Unknowns.basis`."""
        return self.unknowns.basis(self.n_volumes)

    @property
    def n_volumes(self) -> int:
        """Number of volumes ``N``."""
        return len(self.hessian) // len(self.unknowns)

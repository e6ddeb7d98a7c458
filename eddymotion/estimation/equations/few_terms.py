# SPDX-License-Identifier: Apache-2.0
"""A precision matrix as an operator, fast where few combinations of volumes are predictable.

A signal model consists of a few dozen functions of the direction. However many volumes there are,
their predictions are combinations of these functions: ``P = I − L R`` with few columns in ``L``.
Applying that takes a time in proportion to the number of volumes, and ``P`` itself in proportion
to its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW = 1 / 3
"""Combinations over volumes, above which ``P`` itself is about as fast."""

EXACT = 1e-6
"""Largest entry of ``P − (I − L R)`` that is rounding: products are in float32."""


@dataclass(frozen=True, eq=False)
class Filter:
    """A matrix by which volumes are multiplied, ``filter @ values``.

    Parameters
    ----------
    matrix : (N, N) float32 array
    factors : (N, r) and (r, N) float32 array, optional
        ``L`` and ``R``; the matrix itself is used when not given.
    """

    matrix: np.ndarray
    factors: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, precision: np.ndarray) -> Filter:
        """Find the factors of a precision matrix, if they are few."""
        matrix, rank = precision.astype(np.float32), int(FEW * len(precision))
        if not rank:
            return cls(matrix)
        predicted = np.eye(len(precision)) - precision
        directions = np.random.default_rng(0).normal(size=(len(precision), rank))
        basis, _ = np.linalg.qr(predicted @ directions)  # of all columns, if these are so few
        right = basis.T @ predicted
        if np.abs(predicted - basis @ right).max() > EXACT:
            return cls(matrix)
        squares, axes = np.linalg.eigh(right @ right.T)
        axes = axes[:, squares > EXACT**2]
        factors = (basis @ axes).astype(np.float32), (axes.T @ right).astype(np.float32)
        return cls(matrix, factors)

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        if self.factors is None:
            return self.matrix @ values
        left, right = self.factors
        return values - left @ (right @ values)

    def predictors(self, leverage: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Return the factors of ``I − P``, which takes volumes to predictions, in their order.

        Parameters
        ----------
        leverage : (N,) array, optional
            ``P`` is divided by it, row by row.
        """
        if leverage is None and self.factors is not None:
            return self.factors
        taken = self.matrix if leverage is None else self.matrix / leverage[:, None]
        return ((np.eye(len(taken)) - taken).astype(np.float32),)

    @property
    def leverage(self) -> np.ndarray:
        """The diagonal of the matrix, (N,)."""
        return np.diag(self.matrix)

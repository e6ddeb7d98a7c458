# SPDX-License-Identifier: Apache-2.0
"""Smooth functions of space: cubic B-splines on a coarse lattice, and what bends them.

A function is ``h = (Bx ⊗ By ⊗ Bz) c``: on a grid whose axes are those of the lattice, three small
matrices applied one after the other. Derivatives exchange one of them, and the bending energy is
separable as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
from nibabel.affines import voxel_sizes

from eddymotion.wording import short_repr

GRAM_SAMPLES = 8
"""Points an interval at which products of splines are summed."""

ON_THE_EDGE = 1e-9
"""Lattice coordinates no further beyond the ends of a function are on them, but for rounding."""

BENDING_TERMS = (
    ((2, 0, 0), 1), ((0, 2, 0), 1), ((0, 0, 2), 1),
    ((1, 1, 0), 2), ((1, 0, 1), 2), ((0, 1, 1), 2),
)  # fmt: skip
"""Orders of the derivatives along the axes, and how often each second derivative counts."""

Matrices = Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where the knots of a spline lie.

    Parameters
    ----------
    shape : (3,) tuple of int
        Coefficients along each axis. The function lives between the second and the last but one.
    affine : (4, 4) array
        Lattice index → mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    __repr__ = short_repr

    @classmethod
    def covering(cls, shape: Sequence[int], affine: np.ndarray, knots: float) -> Lattice:
        """Cover a grid, along its axes.

        Parameters
        ----------
        shape : (3,) sequence of int
        affine : (4, 4) array
            Voxel indices → mm.
        knots : float
            Distance of the knots, mm; at least a voxel.
        """
        apart = np.maximum(knots / voxel_sizes(affine), 1.0)  # in voxels
        x, y, z = (int(np.ceil((n - 1) / q)) + 3 for n, q in zip(shape, apart, strict=True))
        to_voxels = np.diag([*apart, 1.0])
        to_voxels[:3, 3] = -apart
        return cls((x, y, z), affine @ to_voxels)

    @property
    def spacing(self) -> np.ndarray:
        """Distance of the knots along each axis, mm."""
        return voxel_sizes(self.affine)

    def matrices(
        self, positions: Sequence[np.ndarray], orders: Sequence[int] = (0, 0, 0)
    ) -> list[np.ndarray]:
        """Return the three matrices that evaluate the function, or a derivative, on a grid.

        Parameters
        ----------
        positions : three arrays
            Lattice coordinates along each axis; beyond its ends the function is constant.
        orders : three ints
            Of the derivatives, by lattice coordinates.
        """
        return [
            spline_matrix(at, n, order)
            for at, n, order in zip(positions, self.shape, orders, strict=True)
        ]

    @cached_property
    def grams(self) -> list[list[np.ndarray]]:
        """Integrals of the products of splines and of their derivatives along each axis, by mm.

        ``grams[axis][order]``, symmetric, for the orders 0 to 2.
        """
        found = []
        for n, spacing in zip(self.shape, self.spacing, strict=True):
            steps = GRAM_SAMPLES * (n - 3)
            at = 1 + (np.arange(steps) + 0.5) / GRAM_SAMPLES
            tables = [spline_matrix(at, n, order, spacing=spacing) for order in range(3)]
            found.append([b.T @ b * spacing / GRAM_SAMPLES for b in tables])
        return found

    def bent(self, coefficients: np.ndarray) -> np.ndarray:
        """Half the derivative of the bending energy ∫ |D²h|² dV by the coefficients."""
        total = np.zeros(self.shape, coefficients.dtype)
        for orders, times in BENDING_TERMS:
            grams = [self.grams[axis][order] for axis, order in enumerate(orders)]
            total += times * separable([g.astype(total.dtype) for g in grams], coefficients)
        return total

    @cached_property
    def modes(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Vectors, and squared frequencies (1/mm²), in which mass and slope are diagonal.

        Along an axis ``V.T @ G0 @ V = 1`` and ``V.T @ G1 @ V`` holds the squared frequencies.
        """
        pairs = [scipy.linalg.eigh(slope, mass) for mass, slope, _ in self.grams]
        return [v for _, v in pairs], [np.maximum(w, 0) for w, _ in pairs]

    def preconditioner(
        self, mass: float, slopes: Sequence[float], bending: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return the inverse of ``mass ∫h² + Σ slopes ∫(∂h)² + bending ∫|D²h|²``, about.

        Parameters
        ----------
        mass, bending : float
        slopes : three floats
            By the slopes along the axes of the lattice, per mm.
        """
        vectors, squares = self.modes
        x, y, z = np.meshgrid(*squares, indexing="ij", sparse=True)
        stiffness = (
            mass + slopes[0] * x + slopes[1] * y + slopes[2] * z + bending * (x + y + z) ** 2
        )
        back = [v.T for v in vectors]

        def solve(right: np.ndarray) -> np.ndarray:
            return separable(vectors, separable(back, right) / stiffness)

        return solve


def spline_matrix(
    positions: np.ndarray,
    n: int,
    order: int,
    *,
    spacing: float = 1.0,
    margin: int = 1,
    dtype: type = float,
) -> np.ndarray:
    """Cubic B-splines at lattice coordinates, or their derivative of an order up to 2: (P, n).

    Beyond the ends, `margin` knots inside the first and last coefficient, functions are constant.
    Derivatives are by what the knots are `spacing` apart in.
    """
    inside = np.clip(positions, margin, n - 1.0 - margin)
    cell = np.minimum(inside.astype(int), n - 2 - margin)
    pieces = _bspline(inside - cell, order) / spacing**order
    if order:
        pieces[:, np.abs(inside - positions) > ON_THE_EDGE] = 0.0
    matrix: np.ndarray = np.zeros((len(inside), n), dtype)
    rows = np.arange(len(inside))
    for k, piece in enumerate(pieces, start=-1):
        matrix[rows, cell + k] = piece
    return matrix


def _bspline(t: np.ndarray, order: int) -> np.ndarray:
    """Return the four cubic B-splines that reach fraction `t` of a cell, or derivatives."""
    u = 1 - t
    if order == 0:
        return np.stack(
            [u**3 / 6, 2 / 3 - t**2 * (1 + u) / 2, 2 / 3 - u**2 * (1 + t) / 2, t**3 / 6]
        )
    if order == 1:
        return np.stack([-(u**2) / 2, t * (1.5 * t - 2), u * (2 - 1.5 * u), t**2 / 2])
    return np.stack([u, 3 * t - 2, 3 * u - 2, t])


def separable(matrices: Matrices, coefficients: np.ndarray) -> np.ndarray:
    """Apply a matrix along each of the three axes."""
    first, second, third = matrices
    along_first = (first @ coefficients.reshape(len(coefficients), -1)).reshape(
        -1, *coefficients.shape[1:]
    )
    along_second = np.matmul(second, along_first)
    whole = along_second.reshape(-1, coefficients.shape[2]) @ third.T
    return whole.reshape(len(first), len(second), len(third))


def conjugate_gradients(
    normal: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    *,
    tolerance: float,
    limit: int,
) -> np.ndarray:
    """Solve ``normal(x) = right``, symmetric and positive.

    Parameters
    ----------
    normal, precondition : callable
        Of arrays as `right`.
    right : array
    tolerance : float
        Of the residual, in the measure of the preconditioner, as a part of the first.
    limit : int
        Steps at most.
    """
    x, residual = np.zeros_like(right), right.copy()
    z = precondition(residual)
    direction, power = z, float(np.vdot(residual, z))
    enough = tolerance**2 * power
    for _ in range(limit):
        if power <= enough:
            break
        turned = normal(direction)
        length = power / float(np.vdot(direction, turned))
        x = x + length * direction
        residual = residual - length * turned
        z = precondition(residual)
        power, before = float(np.vdot(residual, z)), power
        direction = z + power / before * direction
    return x

# SPDX-License-Identifier: Apache-2.0
"""The normal matrix of the knots of a group of volumes, which is never formed.

``H`` has as many entries as the square of the number of knots. Nearly all of them are small, since
only the precision ``P`` of the model couples different volumes. Its product with a step takes
three products, ::

    H v = Cᵀ Bᵀ Jᵀ w P J B C v

from knots to slices (``B``), from slices to points (``J``), between volumes (``P``), and back.
``C`` removes motion that all volumes share. The time grows with the numbers of volumes and points,
but not with that of knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eddymotion.estimation.within_volumes.kernels import (
    add_products,
    add_pulls_of_all,
    see_steps_of_all,
)
from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.images.stack_kernels import N_NODES
from eddymotion.machine.parallel import parallel_map

AT_A_TIME = 8
"""Volumes that a thread multiplies at a time."""


@dataclass(frozen=True, eq=False)
class GroupMatrix:
    """``H`` of the k unknowns of a group of n volumes.

    Parameters
    ----------
    knots : Knots
        Of its volumes.
    precision : (n, n) float32 array
        ``P``
    jacobian : (n, V, 6) float32 array
        ``√w J`` at points that determine it.
    weights : (n, V, 8) float32 array
        Of the slices at each, from `first` on.
    first : (n, V) int32 array
    overcount : float
        Divisor of the matrix.
    n_threads : int
        The result does not depend on it.
    """

    knots: Knots
    precision: np.ndarray
    jacobian: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    overcount: float = 1.0
    n_threads: int = 1

    def times(self, steps: np.ndarray) -> np.ndarray:
        """Multiply with steps of the unknowns, (k, 6)."""
        n, n_points = self.first.shape
        of_knots = without_common(self.knots.of_knots(steps))
        of_slices = np.einsum("zm,nma->nza", self.knots.basis, of_knots).astype(np.float32)
        seen = np.empty((n, n_points), np.float32)
        pulls = np.zeros(of_slices.shape)

        def see(some: slice) -> None:
            see_steps_of_all(*self._of(some), of_slices[some], seen[some])

        def pull(some: slice) -> None:
            add_pulls_of_all(*self._of(some), left[some], pulls[some])

        few = [slice(first, first + AT_A_TIME) for first in range(0, n, AT_A_TIME)]
        parallel_map(see, few, n_threads=self.n_threads)
        left = self.precision @ seen
        parallel_map(pull, few, n_threads=self.n_threads)
        of_knots = np.einsum("zm,nza->nma", self.knots.basis, pulls)
        return self.knots.summed(without_common(of_knots)) / self.overcount

    def _of(self, some: int | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.jacobian[some], self.weights[some], self.first[some]

    @cached_property
    def own(self) -> list[np.ndarray]:
        """Blocks of the unknowns of each volume: (6 M, 6 M), at rest (6, 6)."""
        found = [square / self.overcount for square in self.of_volumes]
        moving = np.flatnonzero(self.knots.moving).tolist()

        def of_knots(volume: int) -> np.ndarray:
            bands = self.precision[volume, volume] * slice_products(*self._of(volume), len(basis))
            return knots_of_bands(basis, bands[None])[0] / self.overcount

        basis = self.knots.basis
        squares = parallel_map(of_knots, moving, n_threads=self.n_threads)
        for volume, square in zip(moving, squares, strict=True):
            found[volume] = square
        return found

    @cached_property
    def of_volumes(self) -> np.ndarray:
        """``P_ii Σ w J Jᵀ`` of each volume as a whole, not divided: (n, 6, 6)."""
        square = self.jacobian.transpose(0, 2, 1) @ self.jacobian
        return np.diag(self.precision)[:, None, None] * square.astype(float)

    def between_volumes(self, every: int) -> np.ndarray:
        """``P_ij Σ w J_i J_jᵀ`` of volumes as a whole, from every n-th point: (n, 6, n, 6)."""
        n = len(self.precision)
        flat = self.jacobian[:, ::every].transpose(0, 2, 1).reshape(6 * n, -1)
        square = (every * (flat @ flat.T)).reshape(n, 6, n, 6)
        return (self.precision[:, None, :, None] * square).astype(float)


def without_common(of_knots: np.ndarray) -> np.ndarray:
    """Subtract from values of knots (n, M, 6) their mean over the n volumes."""
    return of_knots - of_knots.mean(axis=0)


def slice_products(
    jacobian: np.ndarray, weights: np.ndarray, first: np.ndarray, n_slices: int
) -> np.ndarray:
    """``Σ w_k w_l J Jᵀ`` of the slices of a volume with themselves and those above.

    Parameters as of :mod:`eddymotion.estimation.within_volumes.kernels`.

    Returns
    -------
    (Z, 8, 6, 6) array
        Slices farther apart have no point in common.
    """
    bands = np.zeros((n_slices, N_NODES, 6, 6))
    add_products(jacobian, weights, first, bands)
    return bands + np.triu(bands, 1).swapaxes(2, 3)


def knots_of_bands(basis: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """Convert normal matrices of slices to those of knots.

    Parameters
    ----------
    basis : (Z, M) array
        Part of each knot in the pose of each slice.
    bands : (n, Z, B, 6, 6) array
        Of each slice with itself and those above it.

    Returns
    -------
    (n, 6 M, 6 M) array
    """
    n, n_slices, reach = bands.shape[:3]
    n_knots = basis.shape[1]
    whole = np.zeros((n, n_knots, 6, n_knots, 6))
    for apart in range(min(reach, n_slices)):
        below, above = basis[: n_slices - apart], basis[apart:]
        both = np.einsum("zm,zl->zml", below, above).reshape(len(below), -1)
        of_pairs = bands[:, : n_slices - apart, apart].reshape(n, len(below), 36)
        found = (both.T @ of_pairs).reshape(n, n_knots, n_knots, 6, 6)
        found = found.transpose(0, 1, 3, 2, 4)
        whole += found if apart == 0 else found + found.transpose(0, 3, 4, 1, 2)
    return whole.reshape(n, 6 * n_knots, -1)

# SPDX-License-Identifier: Apache-2.0
"""What a registration finds: where the points of one image are in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.wording import short_repr


@dataclass(frozen=True, eq=False)
class Warp:
    """A nonlinear map of the fixed image's space onto itself, and its inverse.

    Parameters
    ----------
    forward, inverse : (X, Y, Z, 3) float32 array
        Displacements along x, y, z (RAS+ mm) at the voxels of a grid; none beyond it.
    affine : (4, 4) array
        Voxel indices of that grid → RAS+ mm.
    """

    forward: np.ndarray
    inverse: np.ndarray
    affine: np.ndarray

    __repr__ = short_repr

    def map(self, points: np.ndarray, *, inverse: bool = False) -> np.ndarray:
        """Displace points (P, 3), RAS+ mm; trilinear between the voxels."""
        from scipy.ndimage import map_coordinates

        field = self.inverse if inverse else self.forward
        voxels = apply_affine(np.linalg.inv(self.affine), points).T
        moves = [map_coordinates(field[..., k], voxels, order=1) for k in range(3)]
        return points + np.stack(moves, axis=-1)


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration found, and how it got there.

    A point ``x`` of the fixed image lies at ``matrix @ warp(x)`` in the moving one.

    Parameters
    ----------
    matrix : (4, 4) array
        Points of the fixed image → points of the moving image, RAS+ mm.
    converged : bool
        Whether the steps became smaller than the tolerance.
    message : str
        Why it stopped, in words and numbers.
    cost : tuple of float
        What was minimised, after each accepted step of the finest level.
    n_iterations : int
        Over all levels.
    warp : Warp, optional
        The nonlinear part, in the space of the fixed image.
    """

    matrix: np.ndarray
    converged: bool
    message: str
    cost: tuple[float, ...] = ()
    n_iterations: int = 0
    warp: Warp | None = None

    __repr__ = short_repr

    def map(self, points: np.ndarray, *, inverse: bool = False) -> np.ndarray:
        """Map points (P, 3) of the fixed image into the moving one, or back; RAS+ mm."""
        if inverse:
            points = apply_affine(np.linalg.inv(self.matrix), points)
            return points if self.warp is None else self.warp.map(points, inverse=True)
        return apply_affine(self.matrix, points if self.warp is None else self.warp.map(points))

# SPDX-License-Identifier: Apache-2.0
"""The signal of a moved head on a grid, by volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.images.grid import Grid, grid_points
from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import kernel_order, sample_grid
from eddymotion.simulation.base import (
    ContinuousHead,
    Head,
    signal_of_volume,
    signal_of_volume_at,
)
from eddymotion.simulation.eddy_currents import EddyCurrents


class Points(Protocol):
    """A function of points in a head's frame."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the values (P,) at points (P, 3), RAS+ mm."""
        ...


@dataclass(frozen=True, eq=False)
class View:
    """A volume's view of the head: how it lies, what its gradient is, what field bends it.

    Parameters
    ----------
    bval : float
    bvec : (3,) array
        RAS+ in the head's frame.
    pose : (4, 4) array
        Scanner positions → points of the head, RAS+ mm.
    eddy : EddyCurrents, optional
    index : int
        Of the volume, in `eddy`.
    """

    bval: float
    bvec: np.ndarray
    pose: np.ndarray
    eddy: EddyCurrents | None = None
    index: int = 0

    def sampled(self, head: Head, grid: Grid) -> np.ndarray:
        """Signal at the voxel centres of a grid in the scanner, (Z, Y, X) float32.

        A continuous head is evaluated there. Any other is a cubic spline through its voxels: a
        continuous function, too, which moves with the head.
        """
        if isinstance(head, ContinuousHead):

            def signal(points: np.ndarray) -> np.ndarray:
                return signal_of_volume_at(head, points, self.bval, self.bvec)

            return self._by_slices(signal, grid)
        spline = Spline.of(Image(signal_of_volume(head, self.bval, self.bvec), head.affine))
        if self.eddy is None:
            values = np.empty(grid.shape[::-1], np.float32)
            to_head = np.linalg.inv(head.affine) @ self.pose @ grid.affine
            sample_grid(spline.coefficients, kernel_order(to_head), 0.0, values)
        else:
            values = self._by_slices(lambda points: np.nan_to_num(spline.sample(points)), grid)
        return np.maximum(values, 0.0)

    def _by_slices(self, signal: Points, grid: Grid) -> np.ndarray:
        """Evaluate a function of points of the head, a slice after the other."""
        values = np.empty(grid.shape[::-1], np.float32)
        for z, plane in enumerate(values):
            recorded = grid_points(grid.shape, grid.affine, order="F", slab=slice(z, z + 1))
            if self.eddy is None:
                found = signal(apply_affine(self.pose, recorded))
            else:
                origins, stretch = self.eddy.origin(self.index, recorded)
                found = signal(apply_affine(self.pose, origins)) / stretch
            plane[...] = found.reshape(plane.shape)
        return values

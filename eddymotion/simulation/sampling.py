# SPDX-License-Identifier: Apache-2.0
"""The signal of a moved head on a grid: of a volume, or of a slice with its profile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from eddymotion.images.grid import Grid, grid_points, transformed
from eddymotion.images.image import Image, Spline
from eddymotion.simulation.base import (
    ContinuousHead,
    Head,
    signal_of_volume,
    signal_of_volume_at,
)
from eddymotion.simulation.eddy_currents import EddyCurrents

N_PROFILE_POINTS, PROFILE_REACH = 9, 2.5
"""Points of a Gaussian slice profile, and how many standard deviations it reaches."""


class Points(Protocol):
    """A function of points in a head's frame."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the values (P,) at points (P, 3), RAS+ mm."""
        ...


def signal_function(head: Head, bval: float, bvec: np.ndarray) -> Points:
    """Return the signal as a function of points of the head.

    A continuous head is evaluated there. Any other is a cubic spline through its voxels: a
    continuous function, too, which moves with the head and undershoots at edges.
    """
    if isinstance(head, ContinuousHead):
        return partial(signal_of_volume_at, head, bval=bval, bvec=bvec)
    spline = Spline.of(Image(signal_of_volume(head, bval, bvec), head.affine))
    return lambda points: np.nan_to_num(spline.sample(points))


@dataclass(frozen=True, eq=False)
class SliceProfile:
    """Sensitivity of a slice to signal off its middle.

    Parameters
    ----------
    offsets : (J,) array
        Evenly spaced, from the middle, in units of the distance between slices.
    weights : (J,) array
        Their sum is one.
    """

    offsets: np.ndarray
    weights: np.ndarray

    @classmethod
    def box(cls, n: int) -> SliceProfile:
        """See all of the slice alike and nothing else, at `n` points."""
        return cls((np.arange(n) + 0.5) / n - 0.5, np.full(n, 1 / n))

    @classmethod
    def gaussian(cls, fwhm: float) -> SliceProfile:
        """See as a Gaussian of full width `fwhm` at half its height, in distances of slices."""
        sigmas = np.linspace(-1, 1, N_PROFILE_POINTS) * PROFILE_REACH
        weights = np.exp(-(sigmas**2) / 2)
        return cls(sigmas * fwhm / np.sqrt(8 * np.log(2)), weights / weights.sum())

    def slab(self, grid: Grid, slice_: int) -> Grid:
        """Return the grid with one layer for each point of the profile of a slice."""
        affine = grid.affine.copy()
        affine[:3, 3] += affine[:3, 2] * (slice_ + self.offsets[0])
        affine[:3, 2] *= self.offsets[1] - self.offsets[0] if len(self.offsets) > 1 else 1.0
        return Grid((grid.shape[0], grid.shape[1], len(self.offsets)), affine)

    def mean(self, layers: np.ndarray) -> np.ndarray:
        """Average layers (J, Y, X) of a slab: (Y, X)."""
        return np.tensordot(self.weights.astype(np.float32), layers, 1)


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
    signal : Points, optional
        :func:`signal_function` of the head, if it is known already.
    """

    bval: float
    bvec: np.ndarray
    pose: np.ndarray
    eddy: EddyCurrents | None = None
    index: int = 0
    signal: Points | None = None

    def sampled(self, head: Head, grid: Grid) -> np.ndarray:
        """Signal at the voxel centres of a grid in the scanner, (Z, Y, X) float32.

        See :func:`signal_function`; not negative.
        """
        return np.maximum(self.read(head, grid), 0.0)

    def read(self, head: Head, grid: Grid) -> np.ndarray:
        """Return the same as the function is, negative at some edges of heads on a grid."""
        if self.eddy is None and self.signal is None and not isinstance(head, ContinuousHead):
            return self._read_at_once(head, grid)
        return self._by_slices(self.signal or signal_function(head, self.bval, self.bvec), grid)

    def _read_at_once(self, head: Head, grid: Grid) -> np.ndarray:
        """Read a head on a grid by one matrix, the fast way."""
        spline = Spline.of(Image(signal_of_volume(head, self.bval, self.bvec), head.affine))
        return spline.on_grid(grid.shape, grid.affine, self.pose)

    def _by_slices(self, signal: Points, grid: Grid) -> np.ndarray:
        """Evaluate a function of points of the head, a slice after the other."""
        values = np.empty(grid.shape[::-1], np.float32)
        first = grid_points(grid.shape, grid.affine, order="F", slab=slice(0, 1))
        for z, plane in enumerate(values):
            recorded = first + z * grid.affine[:3, 2]
            if self.eddy is None:
                found = signal(transformed(self.pose, recorded))
            else:
                origins, stretch = self.eddy.origin(self.index, recorded)
                found = signal(transformed(self.pose, origins)) / stretch
            plane[...] = found.reshape(plane.shape)
        return values

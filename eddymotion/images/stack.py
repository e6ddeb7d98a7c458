# SPDX-License-Identifier: Apache-2.0
"""A volume as a stack of slices, each recorded while the head had a pose of its own.

If a head moves while a volume is recorded, the slices are not samples of one image on a grid:
neighbours are tilted against each other, overlap, and leave gaps. Interpolating the stack along
its slice axis would mix slices of different poses, even at the right positions. Here each slice is
a continuous function in its own plane, and a point of the head is read in all slices near it, each
under its own pose. Their values are combined by ordinary kriging along the slice axis: at
distances ``d_k`` (slices) with covariance ``κ(d) = exp(−d²/2ℓ²)`` and nugget ``ν``, the weights ::

    w = C⁻¹ (c + λ 1),   C_kl = κ(d_k − d_l) + ν δ_kl,   c_k = κ(d_k),   λ from Σ w = 1

are those of least variance among all that leave a constant unchanged (Matheron 1963, Economic
Geology 58:1246; Cressie 1990, Mathematical Geology 22:239). Where that variance is large there is
a gap between slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from eddymotion.images.image import Image
from eddymotion.images.kernels import PADDING, spline_coefficients
from eddymotion.images.stack_kernels import (
    N_NODES,
    REACH,
    find_gaps,
    find_slices,
    mix_slices,
    read_slices,
    read_values,
    weigh_slices,
)


@dataclass(frozen=True)
class Kriging:
    """How slices are put together.

    Parameters
    ----------
    length : float
        ``ℓ``, in slices.
    nugget : float
        ``ν``: variance of noise over that of the signal.
    most : float
        Largest variance, over that of the signal, at which a point is known.
    nearest : float
        Where the nearest slice is farther than this, in slices, nothing is known.
    """

    length: float = 0.9
    nugget: float = 0.05
    most: float = 0.6
    nearest: float = 1.0

    def as_array(self) -> np.ndarray:
        """Return what the kernels take, (4,)."""
        return np.array([self.length, self.nugget, self.most, self.nearest])

    @property
    def filling(self) -> Kriging:
        """The same where something is wanted everywhere: gaps show what kriging makes of them."""
        return replace(self, most=np.inf, nearest=REACH)


KRIGING = Kriging()
"""Where the pose is sought: some noise is smoothed away."""

REBUILDING = Kriging(nugget=0.02)
"""Where the corrected series is made and judged."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceWeights:
    """How much each slice of a stack counts at points.

    Parameters
    ----------
    weights : (P, 8) float32 array
        Of the slices from `first` on.
    first : (P,) int array
    """

    weights: np.ndarray
    first: np.ndarray

    @classmethod
    def empty(cls, n_points: int, **others: np.ndarray) -> Self:
        """Make room for the weights at `n_points` points."""
        weights = np.empty((n_points, N_NODES), np.float32)
        return cls(weights=weights, first=np.empty(n_points, np.int64), **others)

    def mixed(self, of_slices: np.ndarray) -> np.ndarray:
        """Mix what belongs to the slices (Z, M) as their values are mixed: (P, M)."""
        mixed = np.empty((len(self.first), of_slices.shape[1]), np.float32)
        own = np.ascontiguousarray(of_slices, dtype=np.float32)
        mix_slices(self.weights, self.first, own, mixed)
        return mixed


@dataclass(frozen=True, eq=False, kw_only=True)
class StackReading(SliceWeights):
    """What a stack shows at points.

    Parameters
    ----------
    values : (P,) float32 array
        NaN where nothing is known; the weights are zero there.
    slopes : (P, 3) float32 array
        Per mm along the axes of the head; zero where nothing is known.
    """

    values: np.ndarray
    slopes: np.ndarray


@dataclass(frozen=True, eq=False)
class SliceStack:
    """A volume, slice by slice.

    Parameters
    ----------
    coefficients : (Z, A + 4, B + 4) float32 array
        Cubic B-spline coefficients of each slice in its plane.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    axis : int
        The image axis that counts the slices.
    lost : (Z,) bool array
        Slices that are not read.
    """

    coefficients: np.ndarray
    affine: np.ndarray
    axis: int
    lost: np.ndarray

    @classmethod
    def of(cls, image: Image, axis: int = 2, lost: np.ndarray | None = None) -> SliceStack:
        """Take an image apart; NaN wherever something that is missing has a say."""
        slices = np.moveaxis(image.data, axis, 2).T.astype(np.float32)
        planes = np.stack([spline_coefficients(plane[None])[PADDING] for plane in slices])
        if image.missing is not None:
            inside = (slice(None), *(slice(PADDING, -PADDING),) * 2)
            planes[inside][np.moveaxis(image.missing, axis, 2).T] = np.nan
        none = np.zeros(len(slices), bool)
        return cls(planes, image.affine, axis, none if lost is None else np.array(lost, bool))

    def read(
        self,
        points: np.ndarray,
        poses: np.ndarray,
        moved: np.ndarray | None = None,
        kriging: Kriging = KRIGING,
    ) -> StackReading:
        """Read at points of the head.

        Parameters
        ----------
        points : (P, 3) array
            mm
        poses : (Z, 4, 4) array
            Points → world, for each slice.
        moved : (P, 3) array, optional
            What fields add to where points are recorded, mm in the world.
        kriging : Kriging
        """
        n = len(points)
        values, slopes = np.empty(n, np.float32), np.empty((n, 3), np.float32)
        found = StackReading.empty(n, values=values, slopes=slopes)
        where = _where(points, poses, moved, self.affine, self.axis)
        filled = found.values, found.slopes, found.weights, found.first
        read_slices(self.coefficients, *where, self.lost, kriging.as_array(), *filled)
        return found

    def values(
        self,
        points: np.ndarray,
        poses: np.ndarray,
        moved: np.ndarray | None = None,
        kriging: Kriging = KRIGING,
    ) -> np.ndarray:
        """Read the values (P,) alone, as :meth:`read` does, in less time."""
        found = np.empty(len(points), np.float32)
        where = _where(points, poses, moved, self.affine, self.axis)
        read_values(self.coefficients, *where, self.lost, kriging.as_array(), found)
        return found


@dataclass(frozen=True, eq=False)
class SlicesAtPoints:
    """Where points of the head are in the slices of a volume, whatever these show.

    Parameters
    ----------
    shape : (3,) tuple
        Of the volume.
    affine, axis
        As of :class:`SliceStack`.
    points, poses, moved
        As of :meth:`SliceStack.read`.
    kriging : Kriging
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axis: int
    points: np.ndarray
    poses: np.ndarray
    moved: np.ndarray | None = None
    kriging: Kriging = REBUILDING

    @property
    def weights(self) -> SliceWeights:
        """How much each slice counts."""
        found = SliceWeights.empty(len(self.points))
        weigh_slices(*self._given, found.weights, found.first)
        return found

    @property
    def gaps(self) -> np.ndarray:
        """Where the slices left a gap within the stack, (P,) bool."""
        found = np.empty(len(self.points), bool)
        find_gaps(*self._given, found)
        return found

    @property
    def _given(self) -> tuple[Any, ...]:
        """What the kernels take."""
        a, b = (self.shape[k] for k in (2, 1, 0) if k != self.axis)
        where = _where(self.points, self.poses, self.moved, self.affine, self.axis)
        lost = np.zeros(self.shape[self.axis], bool)
        return (a, b), *where, lost, self.kriging.as_array()


def _where(
    points: np.ndarray,
    poses: np.ndarray,
    moved: np.ndarray | None,
    affine: np.ndarray,
    axis: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matrices, points and shifts that the kernels take."""
    to_planes = world_to_planes(affine, axis)
    return (
        np.ascontiguousarray(to_planes @ np.asarray(poses, float)),
        np.ascontiguousarray(points, dtype=np.float64),
        np.empty((0, 3))
        if moved is None
        else np.ascontiguousarray(moved @ to_planes[:, :3].T, dtype=np.float64),
    )


def world_to_planes(affine: np.ndarray, axis: int) -> np.ndarray:
    """World mm → position in the kernels' order: two in the plane, then slices; (3, 4)."""
    order = [*(k for k in (2, 1, 0) if k != axis), axis]
    return np.linalg.inv(affine)[order]


def recording_slices(
    points: np.ndarray, poses: np.ndarray, affine: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the slice of a volume in which each point of the head was recorded.

    Parameters
    ----------
    points : (P, 3) array
        Of the head, mm.
    poses : (Z, 4, 4) array
        Points → world, for each slice.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    axis : int
        The image axis that counts the slices.

    Returns
    -------
    slices : (P,) int array
        The nearest one, where it is beyond the image.
    heights : (P,) array
        Along the slice axis, in slices.
    """
    rows = np.zeros((len(poses), 3, 4))
    rows[:, 2] = (np.linalg.inv(affine) @ poses)[:, axis]
    slices, heights = np.empty(len(points), np.int64), np.empty(len(points))
    find_slices(rows, np.ascontiguousarray(points, float), np.empty((0, 3)), slices, heights)
    return slices, heights

# SPDX-License-Identifier: Apache-2.0
"""A volume as a stack of slices, each recorded while the head had a pose of its own.

A head that moves while a volume is recorded leaves slices that are no samples of one image on a
grid: neighbours lie askew, overlap, and leave gaps. Interpolating the stack along its slice axis
mixes slices of different poses, even at the right positions. Here each slice is a continuous
function in its own plane, and a point of the head is read in all slices that come near it, each
under its own pose. Their values are put together by ordinary kriging along the slice axis: at
distances ``d_k`` (slices) with covariance ``κ(d) = exp(−d²/2ℓ²)`` and nugget ``ν``, the weights ::

    w = C⁻¹ (c + λ 1),   C_kl = κ(d_k − d_l) + ν δ_kl,   c_k = κ(d_k),   λ from Σ w = 1

are those of least variance among all that leave a constant unchanged (Matheron 1963, Economic
Geology 58:1246; Cressie 1990, Mathematical Geology 22:239). Where that variance is large there is
a gap, and nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.images.image import Image
from eddymotion.images.kernels import PADDING, spline_coefficients
from eddymotion.images.stack_kernels import N_NODES, find_slices, read_slices


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
    """

    length: float = 0.9
    nugget: float = 0.05
    most: float = 0.6

    def as_array(self) -> np.ndarray:
        """Return what the kernel takes, (3,)."""
        return np.array([self.length, self.nugget, self.most])


KRIGING = Kriging()


@dataclass(frozen=True, eq=False)
class StackReading:
    """What a stack shows at points.

    Parameters
    ----------
    values : (P,) float32 array
        NaN where nothing is known.
    slopes : (P, 3) float32 array
        Per mm along the axes of the head; zero where nothing is known.
    weights : (P, 8) float32 array
        How much each of the slices from `first` on counts.
    first : (P,) int array
    """

    values: np.ndarray
    slopes: np.ndarray
    weights: np.ndarray
    first: np.ndarray

    def mixed(self, of_slices: np.ndarray) -> np.ndarray:
        """Mix what belongs to the slices (Z, M) as their values are mixed: (P, M)."""
        n_slices, n_columns = of_slices.shape
        padded = np.zeros((n_slices + N_NODES, n_columns), np.float32)
        padded[:n_slices] = of_slices
        return sum(self.weights[:, k, None] * padded[self.first + k] for k in range(N_NODES))


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
        planes = np.stack([spline_coefficients(one[None])[PADDING] for one in slices])
        if image.missing is not None:
            inside = (slice(None), *(slice(PADDING, -PADDING),) * 2)
            planes[inside][np.moveaxis(image.missing, axis, 2).T] = np.nan
        none = np.zeros(len(slices), bool)
        return cls(planes, image.affine, axis, none if lost is None else np.array(lost, bool))

    @property
    def to_planes(self) -> np.ndarray:
        """World mm → position in the kernels' order: two in the plane, then slices; (3, 4)."""
        order = [*(k for k in (2, 1, 0) if k != self.axis), self.axis]
        return np.linalg.inv(self.affine)[order]

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
        reading = StackReading(
            np.empty(n, np.float32),
            np.empty((n, 3), np.float32),
            np.empty((n, N_NODES), np.float32),
            np.empty(n, np.int64),
        )
        read_slices(
            self.coefficients,
            self._mappings(poses),
            np.ascontiguousarray(points, dtype=np.float64),
            self._shifts(moved),
            self.lost,
            kriging.as_array(),
            reading.values,
            reading.slopes,
            reading.weights,
            reading.first,
        )
        return reading

    def _mappings(self, poses: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.to_planes @ np.asarray(poses, float))

    def _shifts(self, moved: np.ndarray | None) -> np.ndarray:
        if moved is None:
            return np.empty((0, 3))
        return np.ascontiguousarray(moved @ self.to_planes[:, :3].T, dtype=np.float64)


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

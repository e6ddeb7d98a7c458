# SPDX-License-Identifier: Apache-2.0
"""3-D volumes, as arrays and as continuous functions of world coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import voxel_sizes

from eddymotion.images.kernels import (
    PADDING,
    sample_points,
    sample_points_with_gradient,
    sampled_grid,
    spline_coefficients,
)
from eddymotion.wording import format_sizes, short_repr


class Continuous(ABC):
    """A 3-D volume as a continuous function of world coordinates, in whatever representation.

    Attributes
    ----------
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    """

    affine: np.ndarray

    @abstractmethod
    def sample(self, points: np.ndarray, pose: np.ndarray | None = None) -> np.ndarray:
        """Return samples (P,); NaN where nothing is known.

        Parameters
        ----------
        points : (P, 3) array
            mm
        pose : (4, 4) array, optional
            Frame of the points → world; the identity when not given.
        """

    @abstractmethod
    def sample_with_gradient(
        self, points: np.ndarray, pose: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return samples (P,) and gradients (P, 3), per mm along the axes of the points' frame."""

    @cached_property
    def _world_to_kernel(self) -> np.ndarray:
        """World mm → voxel position in the kernels' (z, y, x) order."""
        return np.linalg.inv(self.affine)[[2, 1, 0, 3]]  # rows only: points stay (x, y, z)

    def mapping(self, pose: np.ndarray | None = None) -> np.ndarray:
        """Points → positions in the kernels' order, (3, 4)."""
        matrix = self._world_to_kernel if pose is None else self._world_to_kernel @ pose
        return np.ascontiguousarray(matrix[:3])


@dataclass(frozen=True, eq=False)
class Spline(Continuous):
    """A 3-D volume as a continuous function of world coordinates: a cubic B-spline.

    Parameters
    ----------
    coefficients : (Z + 4, Y + 4, X + 4) float32 array
        From :func:`eddymotion.images.kernels.spline_coefficients`.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    """

    coefficients: np.ndarray
    affine: np.ndarray

    __repr__ = short_repr

    @classmethod
    def of(cls, image: Image) -> Spline:
        """Interpolate an image; NaN wherever a missing voxel contributes."""
        volume = np.ascontiguousarray(image.data.T, dtype=np.float32)
        coefficients = spline_coefficients(volume)
        if image.missing is not None:
            inside = (slice(PADDING, -PADDING),) * 3
            coefficients[inside][image.missing.T] = np.nan
        return cls(coefficients, image.affine)

    @classmethod
    def of_filtered(cls, image: Image) -> Spline:
        """Interpolate a filtered image; NaN also near the borders of its grid.

        The filter had to assume values beyond the border, and these stay with the scanner while
        the head moves, which pulls estimates towards rest: for a slab of 14 slices, 2 to 3 % of
        all pitch, roll and shifts through the slices were missing. Positions within one voxel of
        the outermost centres, to which the voxels beyond would contribute, are therefore left out.
        """
        spline = cls.of(image)
        for axis in range(3):
            along = np.moveaxis(spline.coefficients, axis, 0)
            along[:PADDING] = along[-PADDING:] = np.nan
        return spline

    def sample(self, points: np.ndarray, pose: np.ndarray | None = None) -> np.ndarray:
        """Return samples (P,); NaN outside the image."""
        values = np.empty(len(points), np.float32)
        sample_points(self.coefficients, self.mapping(pose), as_points(points), values)
        return values

    def sample_with_gradient(
        self, points: np.ndarray, pose: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return samples (P,) and gradients (P, 3), per mm along the axes of the points' frame.

        As :meth:`sample`; NaN outside the image.
        """
        values = np.empty(len(points), np.float32)
        slopes = np.empty((3, len(points)), np.float32)
        sample_points_with_gradient(
            self.coefficients, self.mapping(pose), as_points(points), values, slopes
        )
        return values, slopes.T

    def on_grid(self, shape: tuple[int, ...], affine: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Return samples at the voxels of a grid, (Z, Y, X) float32; zero outside the image.

        Parameters
        ----------
        shape : (3,) tuple
        affine : (4, 4) array
            Of the grid.
        pose : (4, 4) array
            World of the grid → that of the image.
        """
        mapping = np.linalg.inv(self.affine) @ pose @ affine
        return sampled_grid(self.coefficients, mapping, shape)


@dataclass(frozen=True, eq=False)
class Image:
    """A 3-D volume and where it lies.

    Parameters
    ----------
    data : (X, Y, Z) array
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    missing : (X, Y, Z) bool array, optional
        Voxels to be ignored, whatever their value.
    """

    data: np.ndarray
    affine: np.ndarray
    missing: np.ndarray | None = None

    def __repr__(self) -> str:
        sizes = format_sizes(map(float, self.voxel_sizes))
        return f"Image({format_sizes(self.data.shape)}, {sizes} mm, {self.data.dtype})"

    @property
    def voxel_sizes(self) -> np.ndarray:
        """Edge lengths of a voxel, mm."""
        return voxel_sizes(self.affine)

    @cached_property
    def spline(self) -> Spline:
        """The image as a continuous function."""
        return Spline.of(self)


def as_points(points: np.ndarray) -> np.ndarray:
    """Convert points to the one type for which the kernels are compiled."""
    return np.ascontiguousarray(points, dtype=np.float64)

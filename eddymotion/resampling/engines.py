# SPDX-License-Identifier: Apache-2.0
"""The engines of interpolation: NiTransforms, the compiled kernel, and slices one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np

from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import kernel_order, sampled_grid, spline_coefficients
from eddymotion.images.stack import SliceStack
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.field_kernels import sample_grid_through_field
from eddymotion.resampling.reading import Reading

if TYPE_CHECKING:
    from nitransforms.base import TransformBase

Engine = Literal["nitransforms", "fast"]
"""``nitransforms``: the reference. ``fast``: the compiled kernel, equal to it within rounding."""


def with_nitransforms(volume: np.ndarray, where: Reading) -> np.ndarray:
    """Filter the volume once, and let NiTransforms interpolate slab by slab, to save memory.

    The volume is turned to (z, y, x), the order of files, so that successive voxels lie side by
    side in memory: that takes a quarter off the time.
    """
    from nitransforms.resampling import apply
    from scipy.ndimage import spline_filter

    filtered = spline_filter(volume.T, order=3, output=np.float64, mode="mirror")
    moving = nib.spatialimages.SpatialImage(filtered, where.image_affine[:, [2, 1, 0, 3]])
    resampled = np.empty(where.shape[::-1], np.float32)
    for slab, points, stretch, inside in where.homogeneous_slabs(volume.shape):
        read = apply(_to_points(points), moving, order=3, mode="mirror", prefilter=False)
        read *= stretch
        read[~inside] = 0.0
        resampled[slab] = read.reshape(resampled[slab].shape)
    return resampled.T


def _to_points(points: np.ndarray) -> TransformBase:
    """Make a NiTransforms transform onto irregular points, in homogeneous coordinates (4, P).

    Given a grid, NiTransforms would compute the coordinates of its voxels for each volume, and
    copy them to make them homogeneous, which takes an eighth of the time of a volume.
    ``DenseFieldTransform`` would look positions up on its grid, and interpolate between them.
    """
    points_type, transform_type = _types_of_points()
    transform = transform_type()
    transform._reference = points_type(points)
    return transform


@cache
def _types_of_points() -> tuple[type[Any], type[TransformBase]]:
    """Derive points, and a transform that leaves them where they are, from NiTransforms."""
    from nitransforms.base import SampledSpatialData, TransformBase

    class Points(SampledSpatialData):
        def __init__(self, points: np.ndarray) -> None:
            self._coords, self._ndim, self._npoints, self._shape = points.T, 3, len(points.T), None

    class InPlace(TransformBase):
        ndim = 3

    return Points, InPlace


def with_kernel(volume: np.ndarray, where: Reading) -> np.ndarray:
    """Interpolate by the compiled kernels, in single precision."""
    coefficients = spline_coefficients(np.ascontiguousarray(volume.T))
    if where.is_affine:
        return sampled_grid(coefficients, where.voxels, where.shape).T
    resampled = np.empty(where.shape[::-1], np.float32)
    if where.polynomial is not None:
        _through_field(coefficients, where, where.polynomial, resampled)
    else:
        spline = Spline(coefficients, where.image_affine)
        for slab, recorded, stretch in where.slabs(compiled=True):
            read = np.nan_to_num(spline.sample(recorded), copy=False) * stretch
            resampled[slab] = read.reshape(resampled[slab].shape)
    return resampled.T


def _through_field(
    coefficients: np.ndarray, where: Reading, fields: EddyCurrents, resampled: np.ndarray
) -> None:
    """Fill `resampled` with the kernel that evaluates the field on the way."""
    units = fields.units_of(where.mapping.pose @ where.affine)
    to_voxels = np.linalg.inv(where.image_affine)[:3, :3]
    displacement, stretch = fields.polynomials(0)
    sample_grid_through_field(
        coefficients,
        kernel_order(where.voxels),
        np.ascontiguousarray(units[:, [2, 1, 0, 3]]),
        displacement,
        np.ascontiguousarray((to_voxels @ -fields.pe)[::-1]),
        stretch,
        resampled,
    )


def slice_by_slice(volume: np.ndarray, where: Reading) -> np.ndarray:
    """Read each slice of a volume at its own pose."""
    image, mapping = Image(volume, where.image_affine), where.mapping
    assert mapping.slices is not None
    stack = SliceStack.of(image, mapping.slices.axis)
    resampled = np.empty(where.shape[::-1], np.float32)
    for slab, points, there in where.places():
        read = mapping.rebuild(image, points, there, stack)
        resampled[slab] = np.nan_to_num(read, copy=False).reshape(resampled[slab].shape)
    return resampled.T


INTERPOLATE: Mapping[Engine, Callable[[np.ndarray, Reading], np.ndarray]] = {
    "nitransforms": with_nitransforms,
    "fast": with_kernel,
}

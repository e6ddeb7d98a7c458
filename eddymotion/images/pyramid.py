# SPDX-License-Identifier: Apache-2.0
"""Levels of resolution, coarse to fine: filtered images, and the points at which they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import from_matvec

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import block_means, transformed
from eddymotion.images.image import Image
from eddymotion.images.kernels import smooth

BRAIN_SIZE_MM = 110.0
"""Cube root of the volume of a human brain, for which the widths of the levels are given."""

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))

MIN_POINTS = 100
"""Fewer points than this inside both images cannot fix six parameters against noise."""


BLOCK_MM = 15.0
"""Edge of the blocks of a human brain between which errors count as independent."""

THICKNESS_POWER = 1.5
"""See :func:`fine_widths`."""

SPLINE_VOXELS = 8.0
"""Margin that is kept around points to interpolate an image there: voxels farther away contribute
less than 1e-4."""

KNOWN_SHARE, KNOWN_SHARE_COARSE, LEAST_SHARE = 0.9, 0.1, 1e-3
"""A filtered value is used where at least `KNOWN_SHARE` of the filter's weight lies on known
voxels, at coarse levels `KNOWN_SHARE_COARSE`: these need not be as exact, and on their few voxels
little of the brain would be left. Unused values are still computed down to `LEAST_SHARE`, so that
splines find no step there."""


@dataclass(frozen=True)
class Level:
    """One step of the pyramid.

    Parameters
    ----------
    fwhm : float
        Of the smoothing Gaussian: mm for a human brain (scaled with the size of the mask) at
        coarse levels, voxels at a level with `highpass`.
    n_points : int
        Random points of the fixed mask.
    highpass : float, optional
        FWHM, in voxels, of the Gaussian whose smoothed image is subtracted.
    """

    fwhm: float
    n_points: int
    highpass: float | None = None

    def __str__(self) -> str:
        return f"{self.fwhm:g} mm" if self.highpass is None else f"{self.n_points} points"

    def __post_init__(self) -> None:
        sizes = (self.fwhm, self.n_points, *([] if self.highpass is None else [self.highpass]))
        if not all(isinstance(size, (int, float)) and size > 0 for size in sizes):
            raise EddymotionError(
                f"registration: {self!r} has a size that is not above zero; correct it"
            )
        if self.n_points < MIN_POINTS:
            raise EddymotionError(
                f"registration: {self.n_points} points given, expected at least {MIN_POINTS}"
            )


def head_scale(mask: np.ndarray, voxel_sizes: np.ndarray) -> float:
    """Size of a brain relative to a human one."""
    return float(np.cbrt(mask.sum() * np.prod(voxel_sizes))) / BRAIN_SIZE_MM


def fine_widths(voxel_sizes: np.ndarray, power: float = THICKNESS_POWER) -> np.ndarray:
    """Return the unit (mm) of the widths of fine levels along each image axis, (3,).

    The mean edge of a voxel; across thick slices more than their thickness. Detail finer than a
    slice is not lost but becomes a pattern that stays with the slices while the head moves, and
    pulls the poses towards rest. With voxels of 2×2×6 mm and a filter as narrow across the slices
    as in them, 7 to 25 % of pitch, roll and shifts through the slices were missing.
    """
    mean = np.cbrt(np.prod(voxel_sizes))
    return mean * np.maximum(voxel_sizes / mean, 1.0) ** power


def jittered_points(
    mask: np.ndarray, affine: np.ndarray, n_points: int, random: np.random.Generator
) -> np.ndarray:
    """Draw random points of a mask, never on the grid: (P, 3), RAS+ mm."""
    voxels = np.flatnonzero(mask)
    chosen = voxels[random.choice(len(voxels), min(n_points, len(voxels)), replace=False)]
    indices = np.stack(np.unravel_index(chosen, mask.shape), axis=1)  # fast: of the chosen alone
    return transformed(affine, indices + random.uniform(-0.5, 0.5, indices.shape))


def steepest(steepness: np.ndarray, n_points: int, random: np.random.Generator) -> np.ndarray:
    """Draw points at random, more where an image is steep: indices into `steepness` (P,).

    The steepest tenth has the same chance, and so have all if nine tenths are flat. The indices
    are sorted, since a partition leaves them in an order that depends on rounding, and parts of
    the points are taken by their order.
    """
    cap = np.quantile(steepness, 0.9)
    weights = np.minimum(steepness, cap) + 1e-6 * cap if cap > 0 else np.ones(len(steepness))
    n_points = min(n_points, len(steepness))
    waiting = random.exponential(size=len(steepness)) / weights
    return np.sort(np.argpartition(waiting, n_points - 1)[:n_points])


def steepest_points(
    points: np.ndarray, slopes: Iterable[np.ndarray], n_points: int, random: np.random.Generator
) -> np.ndarray:
    """Draw some of the points (P, 3), more where the sum of images is steep: their slopes (P, 3).

    NaN counts as flat. Random as in :func:`steepest`.
    """
    total: np.ndarray = sum(np.nan_to_num(slope, copy=False) for slope in slopes)
    return points[steepest(np.linalg.norm(total, axis=1).astype(float), n_points, random)]


def blocks_of(points: np.ndarray, edge: float) -> np.ndarray:
    """Return the numbers, from zero on, of the cubes of `edge` mm that points (P, 3) lie in."""
    cubes = np.floor(points / edge).astype(int)
    cubes -= cubes.min(axis=0)
    code = np.ravel_multi_index(tuple(cubes.T), tuple(cubes.max(axis=0) + 1))
    return np.unique(code, return_inverse=True)[1]


def band_pass(
    image: Image, level: Level, scale: float, thickness_power: float = THICKNESS_POWER
) -> Image:
    """Smooth an image for a level, on a coarser grid where nothing is lost by it.

    Parameters
    ----------
    image : Image
    level : Level
    scale : float
        From :func:`head_scale`.
    thickness_power : float
        How much wider fine filters are along thick slices: see :func:`fine_widths`.
    """
    if level.highpass is not None:
        unit = fine_widths(image.voxel_sizes, thickness_power)
        image = replace(image, data=np.asfortranarray(image.data, dtype=np.float32))  # once
        return difference_of_gaussians(image, level.fwhm * unit, level.highpass * unit)
    fwhm = level.fwhm * scale
    factors = np.clip((fwhm / 2 / image.voxel_sizes).astype(int), 1, None)
    factors = np.minimum(factors, np.maximum(np.array(image.data.shape) // 8, 1))
    return low_pass(decimate(image, factors), fwhm, KNOWN_SHARE_COARSE)


def difference_of_gaussians(image: Image, narrow: np.ndarray, wide: np.ndarray) -> Image:
    """Subtract an image smoothed by a wide Gaussian from one smoothed by a narrow Gaussian.

    FWHM along the image axes, mm (3,). Voxels are missing where the wide one leaves them missing.
    """
    near, far = low_pass(image, narrow), low_pass(image, wide)
    return Image(np.subtract(near.data, far.data, out=near.data), image.affine, far.missing)


def decimate(image: Image, factors: np.ndarray) -> Image:
    """Average blocks of voxels."""
    if (factors == 1).all():
        return image
    size = np.array(image.data.shape) // factors
    whole = tuple(slice(0, n * f) for n, f in zip(size, factors, strict=True))

    def means(data: np.ndarray) -> np.ndarray:
        return block_means(data[whole], factors, np.float32)

    to_fine = np.diag([*factors, 1.0])
    to_fine[:3, 3] = (factors - 1) / 2
    affine = image.affine @ to_fine
    if image.missing is None:
        return Image(means(image.data), affine)
    known = means(~image.missing)
    return Image(_ratio(means(np.where(image.missing, 0, image.data)), known), affine, known < 0.5)


def low_pass(image: Image, fwhm: float | np.ndarray, known_share: float = KNOWN_SHARE) -> Image:
    """Smooth with a Gaussian of `fwhm` mm, or as many along each image axis, (3,).

    Missing voxels have no weight. A smoothed voxel is missing if less than `known_share` of its
    weight lies on the others.
    """
    sigma = fwhm * FWHM_TO_SIGMA / image.voxel_sizes

    def smoothed(data: np.ndarray) -> np.ndarray:
        return smooth(np.asarray(data, dtype=np.float32).T, sigma[::-1]).T

    if image.missing is None:
        return Image(smoothed(image.data), image.affine)
    known = smoothed(~image.missing)
    data = _ratio(smoothed(np.where(image.missing, 0, image.data)), known)
    return Image(data, image.affine, known < known_share)


def _ratio(weighted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Divide a weighted sum by its weights; zero where there are none."""
    return np.divide(weighted, weights, out=np.zeros_like(weighted), where=weights > LEAST_SHARE)


def crop(image: Image, points: np.ndarray, margin: float | np.ndarray) -> Image:
    """Cut an image down to a box around world points (P, 3), `margin` mm wider (by axis, (3,))."""
    to_voxels = np.linalg.inv(image.affine)
    along = to_voxels[:3, :3] @ points.T
    wide = margin / image.voxel_sizes
    low, high = along.min(axis=1) + to_voxels[:3, 3], along.max(axis=1) + to_voxels[:3, 3]
    low = np.maximum(np.floor(low - wide), 0).astype(int)
    high = np.minimum(np.ceil(high + wide) + 1, image.data.shape).astype(int)
    if (high - low < 4).any():  # outside: nothing to be gained
        return image
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    missing = None if image.missing is None else image.missing[box]
    return Image(image.data[box], image.affine @ from_matvec(np.eye(3), low), missing)

# SPDX-License-Identifier: Apache-2.0
"""Voxels that were set to one value: skull-stripped, defaced or cropped volumes.

Such values, zeros mostly, are no signal of air. Their edge cuts through tissue, stays with the
scanner or follows another motion than the head's, and is the strongest edge of the image: an
estimator that sees it assumes a head at rest. Signal cut this way is missing, not dark.
"""

from __future__ import annotations

import numpy as np
import scipy

SOLID_VOXELS = 3
"""Equal values that fill a cube with edges of this many voxels are no rounded noise."""

TISSUE = 0.25
"""A voxel beside the constant is tissue if it has, with its neighbours, more than this part of the
signal of the brain; a speck of noise in air that was set to zero is not."""

CUT_SHARE, CUT_OUTSIDE = 0.02, 0.004
"""Cut tissue, as a part of the surface of the brain, from which on the constant counts as missing;
the second where all volumes were cut by one mask. Ten raw series, a third of some set to zero by
the scanner: at most 0.001; stripped three voxels outside the brain: 0.008 and more, at the brain
0.5 to 1."""

ONE_EDGE = 0.95
"""Part of the edge at which constants of two volumes agree if one mask cut them."""


def solid_constants(volume: np.ndarray) -> np.ndarray:
    """Find voxels of one exact background value that lie together, (X, Y, Z) bool.

    The value is zero, the least of the volume, or the most frequent on the faces of its box.
    """
    volume = np.asarray(volume)
    found = np.zeros(volume.shape, bool)
    for value in _background_values(volume):
        found |= solid(volume == value)
    return found


def _background_values(volume: np.ndarray) -> list[float]:
    faces = [np.moveaxis(volume, axis, 0)[[0, -1], ::3, ::3].ravel() for axis in range(3)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return list(dict.fromkeys((0.0, float(volume.min()), float(values[np.argmax(counts)]))))


def solid(equal: np.ndarray) -> np.ndarray:
    """Find the voxels (X, Y, Z) that lie together: those in cubes of :data:`SOLID_VOXELS`."""
    if np.count_nonzero(equal) < SOLID_VOXELS:
        return np.zeros(equal.shape, bool)
    size = [SOLID_VOXELS if n > 2 * SOLID_VOXELS else 1 for n in equal.shape]
    cubes = scipy.ndimage.minimum_filter(equal, size=size, mode="nearest")
    return scipy.ndimage.maximum_filter(cubes, size=size) & equal if cubes.any() else cubes


def have_same_edges(volume: np.ndarray, other: np.ndarray) -> bool:
    """Whether the solid constants of two volumes end at the same voxels: a mask was applied.

    Where a scanner sets dark voxels to zero, those of a darker volume reach further.
    """
    first, second = solid_constants(volume), solid_constants(other)
    edge = scipy.ndimage.binary_dilation(first) & ~scipy.ndimage.binary_erosion(
        first, border_value=1
    )
    return bool(edge.any() and (first == second)[edge].mean() > ONE_EDGE)


def constant_share(volume: np.ndarray, mask: np.ndarray) -> float:
    """Fraction of the brain with values of the background, at every other voxel of each axis."""
    seen, brain = volume[::2, ::2, ::2].T, mask[::2, ::2, ::2].T  # files have x as the fastest
    equal = np.zeros(seen.shape, bool)
    for value in _background_values(volume):
        equal |= seen == value
    return float((equal & brain).sum() / max(brain.sum(), 1))


def cut_share(volume: np.ndarray, mask: np.ndarray) -> float:
    """Tissue next to solid constants, as a fraction of the surface of the brain."""
    constant = solid_constants(volume)
    if not constant.any():
        return 0.0
    signal = np.where(constant, 0, volume)
    level = np.median(signal[mask & ~constant]) if (mask & ~constant).any() else np.inf
    tissue = scipy.ndimage.uniform_filter(signal, 3, float) > TISSUE * level
    cut = scipy.ndimage.binary_dilation(constant) & ~constant & tissue
    surface = mask & ~scipy.ndimage.binary_erosion(mask)
    return float(cut.sum() / surface.sum())

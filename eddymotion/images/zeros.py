# SPDX-License-Identifier: Apache-2.0
"""Voxels that were set to zero: skull-stripped or defaced volumes.

Such zeros are no signal of air. Their edge cuts through tissue, stays with the scanner or follows
another motion than the head's, and is the strongest edge of the image: an estimator that sees it
takes the head to be at rest. What is cut so is missing, not dark.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SOLID_VOXELS = 3
"""Zeros that fill a cube of so many voxels an edge are no noise that was rounded off."""

TISSUE = 0.25
"""A voxel beside zeros is tissue if it has, with its neighbours, more than this part of the signal
of the brain; a speck of noise in air that was set to zero is not."""

CUT_SHARE = 0.02
"""Cut tissue, as a part of the surface of the brain, from which on zeros count as missing. Ten
raw series, a third of some set to zero by the scanner: at most 0.001; stripped ones 0.5 to 1."""


def solid_zeros(volume: np.ndarray) -> np.ndarray:
    """Find exact zeros that lie together, (X, Y, Z) bool."""
    zeros = np.asarray(volume) == 0
    size = [SOLID_VOXELS if n > 2 * SOLID_VOXELS else 1 for n in zeros.shape]
    cubes = ndimage.minimum_filter(zeros, size=size, mode="nearest")
    return ndimage.maximum_filter(cubes, size=size) & zeros if cubes.any() else cubes


def cut_share(volume: np.ndarray, mask: np.ndarray) -> float:
    """How much tissue lies beside solid zeros, as a part of the surface of the brain."""
    zeros = solid_zeros(volume)
    if not zeros.any():
        return 0.0
    tissue = ndimage.uniform_filter(volume, 3, float) > TISSUE * np.median(volume[mask])
    cut = ndimage.binary_dilation(zeros) & ~zeros & tissue
    surface = mask & ~ndimage.binary_erosion(mask)
    return float(cut.sum() / surface.sum())

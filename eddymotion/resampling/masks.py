# SPDX-License-Identifier: Apache-2.0
"""Masks on other grids, and the part of the brain that every volume shows."""

from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Box, inside_shape
from eddymotion.images.image import Image
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.volume import VolumeMapping
from eddymotion.resampling.engines import with_kernel
from eddymotion.resampling.reading import Reading


def covered_mask(brain: Image, motion: Motion, recorded: Box) -> np.ndarray:
    """Return the part of the brain that lies inside the image in every volume.

    Where the head has moved out of the field of view there is no signal to compare. If that is
    true of more than half of the brain in some volume, the whole mask is returned: one volume
    must not decide for all.

    Parameters
    ----------
    brain : Image
        A mask of the reference, bool, on any grid.
    motion : Motion
        Reference → volume.
    recorded : Box
        The grid of the original volumes.
    """
    voxels = np.argwhere(brain.data)
    points, to_volume = apply_affine(brain.affine, voxels), np.linalg.inv(recorded.affine)
    covered = np.ones(len(voxels), bool)
    for volume in range(len(motion)):
        there = apply_affine(to_volume, motion.recorded(volume, points))
        covered &= inside_shape(there, recorded.shape)
    if covered.sum() < len(voxels) / 2:
        return brain.data
    mask = np.zeros(brain.data.shape, bool)
    mask[tuple(voxels[covered].T)] = True
    return mask


def mask_on_grid(
    mask: Image, shape: tuple[int, int, int], affine: np.ndarray, points: np.ndarray | None = None
) -> np.ndarray:
    """Read a mask on another grid, (X, Y, Z) bool.

    Parameters
    ----------
    mask : Image
        Bool.
    shape : three int
        Of the grid.
    affine : (4, 4) array
        Its voxel indices → the points of the mask, RAS+ mm.
    points : (Z, Y, X, 3) array, optional
        Where its voxels lie, if no matrix maps them.
    """
    where = Reading(shape, affine, mask.affine, VolumeMapping(np.eye(4)), points)
    found = with_kernel(mask.data.astype(np.float32, order="F"), where) > 0.5
    if not found.any():
        raise EddymotionError(
            "output space: the given grid does not overlap the brain; "
            "give an image in the world coordinates of the series"
        )
    return found

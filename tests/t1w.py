# SPDX-License-Identifier: Apache-2.0
"""T1w-like images of the simulated head."""

from functools import cache

import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, map_coordinates

from eddymotion.images.image import Image
from eddymotion.simulation import Grid, procedural_head

T1_CONTRAST = np.array([1.0, 0.65, 0.2])
"""White matter, grey matter, fluid."""


@cache
def fine_head():
    """The head, finely."""
    return procedural_head(2.0)


def anatomy(voxel_size, matrix, orientation="RAS", bend=None, contrast=T1_CONTRAST):
    """A T1w-like image of the same head, of which a point x shows the head's matrix @ bend(x)."""
    phantom = fine_head()
    intensity = (phantom.tissue @ contrast).astype(np.float32)
    grid = Grid.covering(phantom, voxel_size, orientation)
    points = apply_affine(grid.affine, np.indices(grid.shape).reshape(3, -1).T)
    head = apply_affine(matrix, points if bend is None else bend(points))
    smooth = gaussian_filter(intensity, 0.4 * voxel_size / 2.0)
    voxels = apply_affine(np.linalg.inv(phantom.affine), head).T
    data = map_coordinates(smooth, voxels, order=1).reshape(grid.shape)
    noise = np.random.default_rng(5).normal(scale=0.02, size=grid.shape)
    return Image(np.abs(data + noise).astype(np.float32), grid.affine)

# SPDX-License-Identifier: Apache-2.0
"""Image grids: where their voxels lie."""

from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine


def grid_center(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return the world coordinates (mm) of the centre of an image grid."""
    return apply_affine(affine, (np.array(shape[:3]) - 1) / 2)


def grid_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart (mm) two affines put the corners of a grid of that shape."""
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in shape[:3]])).reshape(3, -1).T
    return float(np.linalg.norm(apply_affine(a - b, corners), axis=1).max())


def fsl_coordinates(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return RAS+ mm → FSL's scaled voxel coordinates of a grid, (4, 4).

    Voxel indices times voxel sizes, x flipped where the determinant of the affine is positive.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    to_fsl = np.diag([*sizes, 1.0])
    if np.linalg.det(affine[:3, :3]) > 0:
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        flip[0, 3] = (shape[0] - 1) * sizes[0]
        to_fsl = flip @ to_fsl
    return to_fsl @ np.linalg.inv(affine)

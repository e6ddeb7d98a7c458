# SPDX-License-Identifier: Apache-2.0
"""The axes of an image grid in the world."""

from __future__ import annotations

import numpy as np


def image_axes(affine: np.ndarray) -> np.ndarray:
    """Return the directions of the image axes in RAS+, the columns of an orthogonal matrix.

    The orthogonal matrix nearest to the affine's normalised columns: exact for every affine
    without shears, whatever the voxel sizes.
    """
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(columns)
    return u @ vt


def phase_encoding_vector(affine: np.ndarray, direction: str) -> np.ndarray:
    """Return the unit vector, RAS+, of an image axis as BIDS writes it: i, j, k, i-, j- or k-."""
    vector = image_axes(affine)[:, "ijk".index(direction[0])]
    return -vector if direction.endswith("-") else vector

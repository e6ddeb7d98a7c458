# SPDX-License-Identifier: Apache-2.0
"""Where slices are, and what is done about those that lost signal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy

from eddymotion.estimation.outliers.scores import SliceOutliers
from eddymotion.images.image import Image

LEAST_LEFT = 0.1
"""What is left of a slice is amplified to no more than the inverse of this."""


def slice_heights(points: np.ndarray, affine: np.ndarray, axis: int) -> np.ndarray:
    """Where points (P, 3) of an image, RAS+ mm, are along its slice axis, in slices: (P,)."""
    row = slice_row(affine, axis)
    return points @ row[:3] + row[3]


def slice_row(affine: np.ndarray, axis: int) -> np.ndarray:
    """Return what takes a point of an image, RAS+ mm and 1, to its slice, (4,)."""
    return np.linalg.inv(affine)[axis]


def is_lost(flags: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Whether points lie in a flagged slice or in one beside it, which interpolation mixes with.

    Parameters
    ----------
    flags : (Z,) bool array
        Of one volume.
    height : (V,) array
        Where the points are along the slice axis of the volume, in slices.
    """
    index = np.rint(height).astype(int)
    inside = (index >= 0) & (index < len(flags))
    return inside & scipy.ndimage.binary_dilation(flags)[np.clip(index, 0, len(flags) - 1)]


def rescaled(image: Image, outliers: SliceOutliers, volume: int) -> Image:
    """Amplify what is left of the signal of lost slices to what there should be.

    A filter spreads a dark slice over those beside it: slices that get no weight spoil others that
    do. What is amplified is mostly noise, but on the level of its surroundings.

    Parameters
    ----------
    image : Image
        The original volume.
    outliers : SliceOutliers
    volume : int
        Its index.
    """
    flags = outliers.flagged[volume]
    if not flags.any():
        return image
    share = np.where(flags, np.clip(outliers.ratio[volume], LEAST_LEFT, 1.0), 1.0)
    shape = np.ones(3, int)
    shape[outliers.slicing.axis] = len(share)
    return replace(image, data=image.data / share.reshape(shape).astype(np.float32))

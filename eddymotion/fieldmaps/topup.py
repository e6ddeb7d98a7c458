# SPDX-License-Identifier: Apache-2.0
"""The spline coefficients that FSL's topup writes (``--out``: ``…_fieldcoef.nii.gz``).

Coefficients of cubic B-splines, Hz, on the grid of the images that topup was given: their header
keeps the distance of the knots in voxels as voxel size, and the shape of those images as the
offset of its qform. The first knot lies one distance before the first voxel. FSL counts voxels
from right to left, as such images are mostly stored; where they are not, the coefficients are
refused, since it is not known in which order they were written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.io.headers import read_header
from eddymotion.io.images import read_image
from eddymotion.mapping.off_resonance import OffResonance

CUBIC, QUADRATIC = 2016, 2017
"""Intents of topup's coefficients in the NIfTI header."""

FIELD_OF_TOPUP = "give the field that topup writes with --fout"


def is_topup_coefficients(path: Path) -> bool:
    """Whether a file holds coefficients of topup, not a map."""
    return int(read_header(path)["intent_code"]) in (CUBIC, QUADRATIC)


def topup_field(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> OffResonance:
    """Read the field of topup for a series on the grid of the images that topup was given.

    Parameters
    ----------
    path : Path
        ``…_fieldcoef.nii.gz``.
    shape, affine
        Of the series.

    Raises
    ------
    EddymotionError
        If the grid is another, or its voxels are not counted from right to left.
    """
    header = read_header(path)
    if int(header["intent_code"]) != CUBIC:
        raise EddymotionError(
            f"{path}: holds quadratic splines, expected cubic ones; {FIELD_OF_TOPUP}"
        )
    images = tuple(int(header[f"qoffset_{axis}"]) for axis in "xyz")
    if images != tuple(shape):
        raise EddymotionError(
            f"{path}: was made from images of shape {images}, the series has {tuple(shape)}; "
            f"{FIELD_OF_TOPUP}, on whatever grid"
        )
    if np.linalg.det(affine[:3, :3]) > 0:
        raise EddymotionError(
            f"{path}: the images are stored from left to right, in which topup's coefficients "
            f"may lie either way; {FIELD_OF_TOPUP}"
        )
    knots = np.diag([*header["pixdim"][1:4].astype(float), 1.0])
    knots[:3, 3] = -np.diag(knots)[:3]
    coefficients, _, _ = read_image(path, ("sform",))  # which holds no place
    return OffResonance(coefficients, affine @ knots)

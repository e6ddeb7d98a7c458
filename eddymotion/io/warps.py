# SPDX-License-Identifier: Apache-2.0
"""Displacement fields ⇄ files: ITK's NIfTI, as ANTs, 3D Slicer and NiTransforms read it.

Five dimensions (X, Y, Z, 1, 3), intent *vector*, millimetres along ITK's LPS+ axes. In memory they
are RAS+, like all else.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import grid_points
from eddymotion.io.images import read_image
from eddymotion.io.writing import replacing
from eddymotion.mapping.registration import Registration, Warp

LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)
"""RAS+ ⇄ LPS+ of a vector."""


def read_warp(forward: Path, inverse: Path) -> Warp:
    """Read both directions of a warp, two displacement fields on one grid.

    Raises
    ------
    EddymotionError
        If a file is missing, damaged or no displacement field, or the grids differ.
    """
    field, affine = read_displacements(forward)
    back, back_affine = read_displacements(inverse)
    if field.shape != back.shape or not np.allclose(affine, back_affine, atol=1e-3):
        raise EddymotionError(
            f"{inverse}: on another grid than {forward.name} (shapes {back.shape[:3]} and "
            f"{field.shape[:3]}); give the two directions of one warp"
        )
    return Warp(field, back, affine)


def write_displacements(path: Path, displacements: np.ndarray, affine: np.ndarray) -> None:
    """Write a displacement field (X, Y, Z, 3), RAS+ mm; gzipped if `path` ends so."""
    stored = (np.asarray(displacements, np.float32) * LPS)[:, :, :, None]
    image = nib.Nifti1Image(stored, affine)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = igzip.compress(content, 1, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_displacements(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a displacement field with NiTransforms.

    Returns
    -------
    displacements : (X, Y, Z, 3) float32 array
        RAS+ mm.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.

    Raises
    ------
    EddymotionError
        If the file is missing, damaged or no displacement field of ITK.
    """
    from nitransforms.io.base import TransformFileError
    from nitransforms.io.itk import ITKDisplacementsField

    data, affine, header = read_image(path)
    try:
        stored = nib.Nifti1Image(data.reshape(header.get_data_shape()[:5]), affine)
        stored.header.set_intent("vector")  # some programs leave it out
        field = np.array(ITKDisplacementsField.from_image(stored).dataobj, dtype=np.float32)
    except (TransformFileError, ValueError) as error:
        raise EddymotionError(
            f"{path}: not a displacement field of ITK ({type(error).__name__}); expected NIfTI of "
            "shape (X, Y, Z, 1, 3)"
        ) from error
    if field.ndim != 4 or field.shape[3] != 3 or not np.isfinite(field).all():
        raise EddymotionError(
            f"{path}: not a displacement field in 3-D of finite numbers (shape {field.shape}); "
            "give the field that the registration wrote"
        )
    return field, affine


def whole_displacements(
    registration: Registration,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    *,
    inverse: bool = False,
) -> np.ndarray:
    """Return matrix and warp of a registration together, as displacements on a grid.

    One file then holds all that a program needs to resample the moving image onto the grid of the
    fixed one, or with `inverse` the fixed image onto that of the moving one.

    Parameters
    ----------
    registration : Registration
    shape : three int
    affine : (4, 4) array
        Voxel indices → RAS+ mm of the grid: that of the fixed image, of the moving one with
        `inverse`.
    inverse : bool

    Returns
    -------
    (X, Y, Z, 3) float32 array
        RAS+ mm.
    """
    points = grid_points(shape, affine)
    moved = registration.map(points, inverse=inverse)
    return (moved - points).reshape(*shape, 3).astype(np.float32)

# SPDX-License-Identifier: Apache-2.0
"""Files that FSL's topup writes with ``--out``: coefficients of the field, poses of images.

``…_fieldcoef.nii.gz``: coefficients of cubic B-splines, Hz, on the grid of the images that topup
was given, in FSL's coordinates: voxels are counted from right to left, however the images are
stored. The header keeps the distance of the knots in voxels as voxel size, the size of a voxel of
the images (mm) as parameters of the intent, and their shape as the offset of the qform. The first
knot lies one distance before the first voxel; but where there is one in every voxel, it lies in
the first, and the field goes to zero beyond the last.

``…_movpar.txt``: a row an image, translations (mm) and angles (rad), as eddy's parameters
(:mod:`eddymotion.derivatives.fsl`), of the opposite direction: image → frame of the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import scipy
from nibabel.affines import voxel_sizes

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import fsl_coordinates
from eddymotion.images.lattice import separable
from eddymotion.io.headers import read_header
from eddymotion.io.images import new_header, read_image, write_volumes
from eddymotion.io.writing import write_text
from eddymotion.mapping.off_resonance import OffResonance, Readout

CUBIC, QUADRATIC = 2016, 2017
"""Intents of topup's coefficients in the NIfTI header."""

FILES = ("fieldcoef.nii.gz", "movpar.txt", "acqparams.txt")
"""How the names go on that are written."""

FIELD_OF_TOPUP = "give the field that topup writes with --fout"


def is_topup_coefficients(path: Path) -> bool:
    """Whether a file holds coefficients of topup, not a map."""
    return int(read_header(path)["intent_code"]) in (CUBIC, QUADRATIC)


def topup_field(path: Path, shape: Sequence[int], affine: np.ndarray) -> OffResonance:
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
        If the grid is another, or the splines are not cubic.
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
            f"{FIELD_OF_TOPUP}, on any grid"
        )
    apart = np.rint(header["pixdim"][1:4].astype(float))
    in_voxels = apart == 1
    coefficients, _, _ = read_image(path, ("sform",))  # which holds no place
    coefficients = np.pad(coefficients, np.where(in_voxels, 1, 0)[:, None])  # zero beyond
    return OffResonance(coefficients, _lattice_affine(shape, affine, apart))


def topup_files(base: Path) -> list[Path]:
    """Name the files of :func:`write_topup`."""
    return [base.with_name(f"{base.name}_{ending}") for ending in FILES]


def write_topup(
    base: Path,
    field: OffResonance,
    poses: np.ndarray,
    readouts: Sequence[Readout],
    shape: Sequence[int],
    affine: np.ndarray,
) -> list[Path]:
    """Write a field as topup does, for programs that ask for its ``--topup`` base name.

    With a knot in every voxel, so that it is exactly the field on the grid.

    Parameters
    ----------
    base : Path
        Without an ending.
    field : OffResonance
        In the frame of the first image.
    poses : (K, 4, 4) array
        First image → each, RAS+ mm.
    readouts : sequence of K Readout
        Of the images.
    shape, affine
        Of the grid of the first image.

    Returns
    -------
    list of Path
        ``BASE_fieldcoef.nii.gz``, ``BASE_movpar.txt``, and ``BASE_acqparams.txt``: a row an image,
        too.
    """
    paths = topup_files(base)
    to_fsl, sizes = fsl_coordinates(tuple(shape), affine), voxel_sizes(affine)
    on_grid = field.on_grid(shape, np.linalg.inv(to_fsl) @ np.diag([*sizes, 1.0]))
    write_volumes(paths[0], _header(shape, sizes), [interpolating(on_grid)])
    center = (np.array(shape) - 1) * sizes / 2
    to_field = to_fsl @ np.linalg.inv(poses) @ np.linalg.inv(to_fsl)
    write_text(paths[1], table(movement_parameters(to_field, center)))
    write_text(paths[2], "".join(_acquisition(one, to_fsl, sizes) for one in readouts))
    return paths


def _header(shape: Sequence[int], sizes: np.ndarray) -> nib.Nifti1Header:
    """Return topup's header of coefficients, one in every voxel."""
    geometry = np.eye(4)
    geometry[:3, 3] = shape
    header = new_header(tuple(shape), np.dtype(np.float32), geometry)
    header.set_sform(None, 0)
    header["intent_code"] = CUBIC
    for number, size in enumerate(sizes, start=1):
        header[f"intent_p{number}"] = size
    return header


def interpolating(values: np.ndarray) -> np.ndarray:
    """Return coefficients of cubic B-splines in the voxels that show values (X, Y, Z) there."""
    columns = [np.array([2 / 3, 1 / 6, *np.zeros(max(n - 2, 0))])[:n] for n in values.shape]
    return separable([np.linalg.inv(scipy.linalg.toeplitz(column)) for column in columns], values)


def movement_parameters(matrices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return FSL's translations (mm) and angles (rad) of matrices, (N, 6).

    ``x → Rx Ry Rz (x − c) + c + t``, where ``Rx(a)`` turns by −a in the right-handed sense.

    Parameters
    ----------
    matrices : (N, 4, 4) array
        In FSL's coordinates.
    center : (3,) array
        ``c``, in them.
    """
    inverse = np.swapaxes(matrices[:, :3, :3], 1, 2)
    angles = scipy.spatial.transform.Rotation.from_matrix(inverse).as_euler("xyz")
    moved = matrices[:, :3, :3] @ center + matrices[:, :3, 3]
    return np.hstack([moved - center, angles])


def table(rows: np.ndarray) -> str:
    """Write rows of numbers as FSL's programs do."""
    return "".join("  ".join(f"{value + 0.0:.10g}" for value in row) + "\n" for row in rows)


def _lattice_affine(shape: Sequence[int], affine: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Return lattice index → RAS+ mm, of coefficients as topup stores them."""
    in_voxels = np.diag([*apart, 1.0])
    in_voxels[:3, 3] = -apart
    scaled = np.diag([*voxel_sizes(affine), 1.0])
    return np.linalg.inv(fsl_coordinates(tuple(shape), affine)) @ scaled @ in_voxels


def _acquisition(readout: Readout, to_fsl: np.ndarray, sizes: np.ndarray) -> str:
    """Return a row of the acquisition parameters."""
    along = to_fsl[:3, :3] @ readout.direction
    axis = int(np.abs(along).argmax())
    vector = np.zeros(3, int)
    vector[axis] = 1 if along[axis] > 0 else -1
    return " ".join(map(str, vector)) + f" {readout.mm_per_hertz / sizes[axis]:g}\n"

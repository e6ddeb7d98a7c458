# SPDX-License-Identifier: Apache-2.0
"""Motion as other programs write it → rigid matrices, reference → volume, RAS+ mm.

Each has coordinates, a centre and a direction of its own:

eddy (FSL): ``.eddy_parameters``, ``.eddy_movement_over_time``
    Translations (mm) and angles (rad), reference → volume, about the middle of the grid, in FSL's
    coordinates (voxels times voxel sizes, x counted from the other end where the determinant of
    the affine is positive): ``x → Rx Ry Rz (x − c) + c + t``, where ``Rx(a)`` turns by −a in the
    right-handed sense. A row a volume, or an excitation of a volume; in ``.eddy_parameters`` the
    field follows, Hz, its constant last.
mcflirt (FSL): folder ``.mat`` with ``MAT_0000`` …
    4×4, volume → reference, FSL's coordinates.
afni: ``.1D`` of 3dvolreg, ``-1Dfile`` (six columns), ``-dfile`` (nine) or ``-1Dmatrix_save`` (12)
    Six are roll, pitch, yaw (degrees), dS, dL, dP (mm), volume → reference: turns about S, then L,
    then P, right-handed, about the middle of the grid, then a shift, in DICOM's LPS+. Twelve are
    rows of a matrix, reference → volume, LPS+. Oblique grids are turned back first.
spm: ``rp_….txt``
    Translations (mm) and angles (rad), volume → reference, about the origin of RAS+:
    ``x → R1 R2 R3 x + t``, where R1 and R3 turn by minus the angle about x and z, R2 by plus the
    angle about y, right-handed.
shard (MRtrix3): ``-export_motion`` of dwimotioncorrect
    Logarithm of the matrix in the Lie algebra (mm, rad), slice → reference, RAS+, about the
    origin. A row an excitation of a volume: with G rows a volume, row ``g`` is that of the slices
    ``g``, ``g + G`` …, whenever they were excited.

That of MCFLIRT's ``.par`` has a centre that the file does not contain: the folder has the same
motion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy
from nibabel.affines import from_matvec, voxel_sizes

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid, fsl_coordinates
from eddymotion.io.itk import LPS
from eddymotion.io.tables import read_numbers
from eddymotion.io.transforms import afni_coordinates

PROGRAMS = ("eddy", "mcflirt", "afni", "spm", "shard")
"""Whose files are read."""

N_COLUMNS = {
    "eddy": (6, 10, 16, 26),
    "afni": (6, 9, 12),
    "spm": (6,),
    "shard": (6,),
}
"""How many numbers a row of a file can have."""

MOVEMENT = 6
"""The first columns of eddy's parameters; the others are the field's."""


def program_of(path: Path) -> str | None:
    """Return which of :data:`PROGRAMS` wrote a file, by its name; None for others."""
    name = path.name.lower()
    if path.is_dir():
        return "mcflirt" if any(path.glob("MAT_*")) else None
    if name.endswith(".par"):
        return "mcflirt"  # which refuses it, and says why
    if name.endswith((".eddy_parameters", ".eddy_movement_over_time")):
        return "eddy"
    if name.endswith(".1d"):
        return "afni"
    return "spm" if name.startswith("rp_") and name.endswith(".txt") else None


def read_poses(path: Path, program: str, grid: Grid) -> np.ndarray:
    """Read the matrices of a file, one a row (of a folder, one a file): (R, 4, 4).

    Parameters
    ----------
    path : Path
    program : str
        One of :data:`PROGRAMS`.
    grid : Grid
        Of the series.

    Raises
    ------
    EddymotionError
        If it is not a file of that program.
    """
    if program == "mcflirt":
        return flirt_poses(_flirt_matrices(path), grid)
    rows = read_rows(path, program)
    if program in ("spm", "shard"):
        return spm_poses(rows) if program == "spm" else shard_poses(rows)
    return eddy_poses(rows, grid) if program == "eddy" else afni_poses(rows, grid)


def read_rows(path: Path, program: str) -> np.ndarray:
    """Read the numbers of a program's table, (R, columns).

    Raises
    ------
    EddymotionError
        If there are others than such a table has.
    """
    rows = read_numbers(path)
    if rows.shape[1] not in N_COLUMNS[program]:
        expected = " or ".join(map(str, sorted(N_COLUMNS[program])))
        raise EddymotionError(
            f"{path}: found rows of {rows.shape[1]} numbers, expected {expected} in a file of "
            f"{program}; name the program with --format"
        )
    if not (finite := np.isfinite(rows).all(axis=1)).all():
        raise EddymotionError(
            f"{path}: not all numbers of row {np.argmin(finite) + 1} are finite; give a complete "
            f"file of {program}"
        )
    return rows


def eddy_poses(rows: np.ndarray, grid: Grid) -> np.ndarray:
    """Turn rows of FSL's eddy into matrices; the field takes no part."""
    to_fsl = fsl_coordinates(grid.shape, grid.affine)
    center = (to_fsl @ np.append(grid.center, 1.0))[:3]
    turn = (
        scipy.spatial.transform.Rotation.from_euler("xyz", rows[:, 3:MOVEMENT]).inv().as_matrix()
    )
    moved = center + rows[:, :3] - turn @ center
    return np.linalg.inv(to_fsl) @ _matrices(turn, moved) @ to_fsl


def eddy_offsets(
    path: Path,
    rows: np.ndarray,
    grid: Grid,
    acquisition: np.ndarray,
    index: np.ndarray | None = None,
) -> np.ndarray:
    """Where the constants of eddy's fields displace the volumes, RAS+ mm: (N, 3).

    The constant and a translation of the head along the phase encoding look alike, so what eddy
    takes for the one may be the other.

    Parameters
    ----------
    path : Path
        Of ``.eddy_parameters``, for what is said.
    rows : (N, columns) array
        Its numbers.
    grid : Grid
    acquisition : (A, 4) array
        eddy's ``--acqp``: phase-encoding vector along FSL's axes, and readout time (s).
    index : (N,) int array, optional
        eddy's ``--index``, from 1: which of the rows of `acquisition` belongs to each volume.
        The first when not given.

    Raises
    ------
    EddymotionError
        If there are no fields, or they do not belong together.
    """
    if rows.shape[1] == MOVEMENT:
        raise EddymotionError(
            f"{path}: holds no fields whose constants could be added; leave --acqp out"
        )
    index = np.ones(len(rows), int) if index is None else index
    fits = acquisition.shape[1:] == (4,) and len(index) == len(rows)
    if not (fits and index.min() >= 1 and index.max() <= len(acquisition)):
        raise EddymotionError(
            f"{path}: acquisition parameters of shape {acquisition.shape} and an index of "
            f"{len(index)} numbers up to {index.max()}, expected rows of four numbers, and one of "
            f"them for each of {len(rows)} volumes"
        )
    own = acquisition[index - 1]
    sizes = voxel_sizes(grid.affine)
    in_fsl = own[:, :3] * rows[:, -1:] * own[:, 3:] * sizes
    return in_fsl @ np.linalg.inv(fsl_coordinates(grid.shape, grid.affine))[:3, :3].T


def flirt_poses(matrices: np.ndarray, grid: Grid) -> np.ndarray:
    """Turn FLIRT's matrices, volume → reference on the same grid, into ours."""
    to_fsl = fsl_coordinates(grid.shape, grid.affine)
    return np.linalg.inv(to_fsl) @ np.linalg.inv(matrices) @ to_fsl


def afni_poses(rows: np.ndarray, grid: Grid) -> np.ndarray:
    """Turn rows of 3dvolreg into matrices."""
    to_afni = LPS @ afni_coordinates(grid.affine)
    if rows.shape[1] == 12:
        last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(rows), 1, 4))
        to_volume = np.concatenate([rows.reshape(-1, 3, 4), last], axis=1)
    else:
        roll, pitch, yaw, up, left, back = rows[:, -8:-2].T if rows.shape[1] == 9 else rows.T
        angles = np.stack([roll, pitch, yaw], axis=1)
        turn = scipy.spatial.transform.Rotation.from_euler("zxy", angles, degrees=True).as_matrix()
        center = (to_afni @ np.append(grid.center, 1.0))[:3]
        shift = np.stack([left, back, up], axis=1)
        to_volume = np.linalg.inv(_matrices(turn, center + shift - turn @ center))
    return np.linalg.inv(to_afni) @ to_volume @ to_afni


def spm_poses(rows: np.ndarray) -> np.ndarray:
    """Turn rows of SPM into matrices."""
    turn = scipy.spatial.transform.Rotation.from_euler(
        "XYZ", rows[:, 3:] * [-1, 1, -1]
    ).as_matrix()
    return np.linalg.inv(_matrices(turn, rows[:, :3]))


def shard_poses(rows: np.ndarray) -> np.ndarray:
    """Turn rows of SHARD into matrices."""
    x, y, z = rows[:, 3:].T
    generator = np.zeros((len(rows), 4, 4))
    generator[:, :3, 3] = rows[:, :3]
    for (i, j), angle in (((2, 1), x), ((0, 2), y), ((1, 0), z)):
        generator[:, i, j], generator[:, j, i] = angle, -angle
    return np.linalg.inv(scipy.linalg.expm(generator))


def _matrices(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.stack([from_matvec(r, t) for r, t in zip(turn, shift, strict=True)])


def _flirt_matrices(folder: Path) -> np.ndarray:
    found = folder.glob("MAT_*") if folder.is_dir() else ()
    files = sorted((path for path in found if path.name[4:].isdigit()),
                   key=lambda path: int(path.name[4:]))  # fmt: skip
    if not files:
        raise EddymotionError(
            f"{folder}: expected the folder with MAT_0000, MAT_0001 … that MCFLIRT writes with "
            "-mats (its .par does not give the centre of rotation)"
        )
    missing = set(range(len(files))) - {int(file.name[4:]) for file in files}
    if missing:
        raise EddymotionError(
            f"{folder}: MAT_{min(missing):04d} is missing, but later ones exist; give the folder "
            "as MCFLIRT wrote it"
        )
    matrices = [read_numbers(file) for file in files]
    for file, matrix in zip(files, matrices, strict=True):
        if matrix.shape != (4, 4):
            raise EddymotionError(
                f"{file}: found {matrix.shape} numbers, expected a 4×4 matrix of FLIRT"
            )
    return np.stack(matrices)

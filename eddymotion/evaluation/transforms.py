# SPDX-License-Identifier: Apache-2.0
"""Motion in the files that programs leave behind → matrices, reference → volume, RAS+ mm.

:mod:`eddymotion.io.other_programs` knows what those of others mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError, absence
from eddymotion.images.grid import Grid
from eddymotion.io.given_tables import GivenTable
from eddymotion.io.headers import affine_of, read_header, shape_of
from eddymotion.io.images import read_image
from eddymotion.io.itk import read_itk
from eddymotion.io.other_programs import (
    PROGRAMS,
    eddy_offsets,
    program_of,
    read_poses,
    read_rows,
)
from eddymotion.io.tables import read_numbers
from eddymotion.io.trajectory import is_trajectory, read_trajectory
from eddymotion.io.transforms import read_x5
from eddymotion.io.tsv import is_number
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import PARAMETERS, RIGID_TOLERANCE, far_from_rotations, rigid_matrix
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.wording import short_repr, why

READABLE = (
    "give an ITK text file (.txt, .tfm, .mat), an X5 file (.x5), a table (.tsv) with the "
    "columns " + " ".join(PARAMETERS) + ", or a file of another program (--format)"
)


@dataclass(frozen=True, eq=False)
class MotionFile:
    """A motion as read from a file.

    Parameters
    ----------
    motion : Motion
    bvals : (N,) array, optional
        Where the table has a column ``bval``.
    slices : SlicePoses, optional
        If the file has motion within volumes; `motion` are then the mean poses.
    """

    motion: Motion
    bvals: np.ndarray | None = None
    slices: SlicePoses | None = None

    __repr__ = short_repr


def read_motion(
    path: str | Path,
    grid: Grid | None = None,
    *,
    program: str | None = None,
    groups: Sequence[np.ndarray] | None = None,
    n_volumes: int | None = None,
) -> MotionFile:
    """Read the rigid motion of a series.

    Parameters
    ----------
    path : path
        ITK text file or X5 with one transform a volume; or a tab-separated table with the
        columns ``trans_x`` … ``rot_z`` (mm, rad: displacement of the grid's centre, extrinsic
        xyz angles), and perhaps ``trans_x_se`` … ``rot_z_se`` and ``bval``, with a row a volume,
        or ``volume``, ``slices`` and ``time`` and a row an excitation; or what another program
        wrote.
    grid : Grid, optional
        Of the series. Tables and files of other programs need it: their translations are those of
        its centre, or along its axes.
    program : str, optional
        One of :data:`~eddymotion.io.other_programs.PROGRAMS` that wrote the file, if its name does
        not tell.
    groups : sequence of index arrays, optional
        Slices of each excitation, in the order of time: what rows of eddy's
        ``.eddy_movement_over_time`` belong to.
    n_volumes : int, optional
        Volumes of the series: a file of another program with some times as many rows has one an
        excitation.

    Returns
    -------
    MotionFile

    Raises
    ------
    EddymotionError
        If the file cannot be read as any of these, or holds transforms that are not rigid.
    """
    path = Path(path)
    if program := program or program_of(path):
        return _of_another(path, program, grid, groups, n_volumes)
    if path.suffix.lower() in (".tsv", ".csv"):
        if path.is_file() and is_trajectory(path):
            slices = read_trajectory(path, _demanded(path, grid).center)
            return MotionFile(slices.mean(_demanded(path, grid).center), slices=slices)
        return _from_parameters(GivenTable.read(path), grid)
    _refuse_bare_numbers(path)
    matrices = read_transforms(path)
    _refuse_shear(path, matrices)
    return MotionFile(Motion(matrices))


def eddy_motion_with_offsets(
    path: Path, motion: Motion, grid: Grid, acquisition: Path, index: Path | None
) -> Motion:
    """Give the head what eddy's fields displace all of a volume by.

    Parameters
    ----------
    path : Path
        eddy's ``.eddy_parameters``.
    motion : Motion
        What :func:`read_motion` makes of it.
    grid : Grid
    acquisition, index : Path
        What eddy was given as ``--acqp`` and ``--index``.

    Raises
    ------
    EddymotionError
        If there are no fields, or the files do not belong together.
    """
    numbers = None if index is None else read_numbers(index).ravel().astype(int)
    rows = read_rows(path, "eddy")
    offsets = eddy_offsets(path, rows, grid, read_numbers(acquisition), numbers)
    moved = np.array(motion.matrices)
    moved[:, :3, 3] += offsets
    return Motion(moved)


def _of_another(
    path: Path,
    program: str,
    grid: Grid | None,
    groups: Sequence[np.ndarray] | None,
    n_volumes: int | None,
) -> MotionFile:
    """Read a file of another program."""
    if program not in PROGRAMS:
        raise EddymotionError(f"{program!r} given, expected one of {', '.join(PROGRAMS)}")
    grid = _demanded(path, grid)
    poses = read_poses(path, program, grid)
    _refuse_shear(path, poses)
    if program not in ("eddy", "shard") or n_volumes in (None, len(poses)):
        return MotionFile(Motion(poses))
    n_groups, rest = divmod(len(poses), n_volumes)
    if program == "shard":
        groups = [np.arange(g, grid.shape[2], n_groups) for g in range(n_groups)]
    if rest or groups is None or len(groups) != n_groups:
        known = "an unknown number of" if groups is None else f"{len(groups)}"
        raise EddymotionError(
            f"{path}: holds {len(poses)} rows for {n_volumes} volumes with {known} excitations "
            "each; expected one row per volume or per excitation"
        )
    matrices = poses.reshape(n_volumes, n_groups, 4, 4)
    slices = SlicePoses(matrices, tuple(groups), np.full((n_volumes, n_groups), np.nan))
    return MotionFile(slices.mean(grid.center), slices=slices)


def _demanded(path: Path, grid: Grid | None) -> Grid:
    if grid is None:
        raise EddymotionError(
            f"{path}: translations in a table are those of the centre of the image grid, or "
            "along its axes; give that grid with --reference IMAGE (the original series, or its "
            "mask)"
        )
    return grid


def _refuse_bare_numbers(path: Path) -> None:
    """Raise if a text is rows of numbers, whose meaning only their program knows."""
    if path.suffix.lower() != ".txt" or not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        first = stream.readline().split()
    if len(first) >= 6 and all(map(is_number, first)):
        raise EddymotionError(
            f"{path}: holds rows of {len(first)} numbers; name the program that wrote them with "
            f"--format ({', '.join(PROGRAMS)})"
        )


def _refuse_shear(path: Path, matrices: np.ndarray) -> None:
    shear = far_from_rotations(matrices)
    if shear.max() > RIGID_TOLERANCE:
        raise EddymotionError(
            f"{path}: transform {int(shear.argmax())} (counted from 0) scales or shears, "
            "expected rigid transforms; give transforms of head motion only"
        )


def read_transforms(path: str | Path) -> np.ndarray:
    """Read the affine transforms of an ITK text or X5 file, (N, 4, 4), RAS+ mm.

    Raises
    ------
    EddymotionError
        If the file is missing, or holds warps or another format.
    """
    path = Path(path)
    if path.is_dir():
        raise EddymotionError(f"{path}: a folder, expected a file; {READABLE}")
    if not path.is_file():
        raise EddymotionError(absence(path))
    if path.name.lower().endswith((".nii", ".nii.gz", ".h5")):
        raise EddymotionError(
            f"{path}: an image, a warp or a composite transform, expected linear transforms; give "
            "them as ITK text or X5, such as …_xfm.txt"
        )
    if path.suffix.lower() == ".x5":
        return _usable(path, _read_x5(path))
    return _usable(path, read_itk(path))


def read_transform(path: str | Path, volume: int | None = None) -> np.ndarray:
    """Read the only transform of a file, or that of a volume: (4, 4), RAS+ mm.

    Parameters
    ----------
    path : path
    volume : int, optional
        Counted from 0.

    Raises
    ------
    EddymotionError
        As :func:`read_transforms`, or if there are several and none is chosen.
    """
    matrices = read_transforms(path)
    last = len(matrices) - 1
    if volume is None and last:
        raise EddymotionError(
            f"{path}: holds {last + 1} transforms; select one with --volume, from 0 to {last}"
        )
    if (volume or 0) > last:
        raise EddymotionError(
            f"{path}: holds {last + 1} transform(s), none for volume {volume}; give --volume from "
            f"0 to {last}"
        )
    return matrices[volume or 0]


def _usable(path: Path, matrices: np.ndarray) -> np.ndarray:
    if not np.isfinite(matrices).all() or (np.abs(np.linalg.det(matrices)) < 1e-9).any():
        raise EddymotionError(
            f"{path}: holds a transform that is not finite or cannot be inverted; write it again"
        )
    return matrices


def _read_x5(path: Path) -> np.ndarray:
    try:
        return read_x5(path)
    except EddymotionError:
        raise
    except Exception as error:  # whatever a decoder raises
        raise EddymotionError(
            f"{path}: cannot be read as linear transforms in X5 ({why(error)}); {READABLE}"
        ) from error


def _from_parameters(table: GivenTable, grid: Grid | None) -> MotionFile:
    center, values = _demanded(table.path, grid).center, table.parameters()
    names = [f"{name}_se" for name in PARAMETERS]
    errors = table.numbers(*names) if all(name in table for name in names) else None
    matrices = rigid_matrix(values[:, :3], values[:, 3:], center)
    bvals = table.numbers("bval")[:, 0] if "bval" in table else None
    return MotionFile(Motion(matrices, errors), bvals)


def read_grid(path: str | Path) -> Grid:
    """Read where an image lies, not its voxels.

    Raises
    ------
    EddymotionError
        If the file cannot be read, or has fewer than three axes.
    """
    path = Path(path)
    header = read_header(path)
    shape = shape_of(header)
    if len(shape) < 3:
        raise EddymotionError(f"{path}: found an image of shape {shape}, expected three axes")
    return Grid((shape[0], shape[1], shape[2]), affine_of(path, header, strict=False))


def read_bvals(path: str | Path) -> np.ndarray:
    """Read b-values (s/mm²), numbers separated by blanks or lines: (N,)."""
    return read_numbers(Path(path)).ravel()


def read_mask(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a mask, (X, Y, Z) bool, and its affine.

    Raises
    ------
    EddymotionError
        If it is not three-dimensional, or empty.
    """
    data, affine, _ = read_image(Path(path))
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    mask = np.nan_to_num(data) > 0
    if mask.ndim != 3 or not mask.any():
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape} with {mask.sum()} voxels above zero, "
            "expected a mask in three dimensions"
        )
    return mask, affine

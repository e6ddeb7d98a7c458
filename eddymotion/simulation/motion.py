# SPDX-License-Identifier: Apache-2.0
"""How a head moves: known motion to simulate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.interpolate import CubicSpline

from eddymotion.errors import EddymotionError
from eddymotion.io.given_tables import GivenTable
from eddymotion.io.itk import read_itk
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import (
    PARAMETERS,
    RIGID_TOLERANCE,
    far_from_rotations,
    rigid_matrix,
    rigid_parameters,
)
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.patterns import PATTERNS, Pattern
from eddymotion.wording import why

__all__ = ["PATTERNS", "Pattern", "amplified", "replayed_motion", "simulate_motion"]

Poses = TypeVar("Poses", Motion, SlicePoses)

_JUMPS = {
    "none": (0, 0.0, 0.0),
    "drift": (0, 0.0, 0.0),
    "moderate": (3, 3.0, 2.0),
    "high": (8, 5.0, 4.0),
}  # number, mm, degrees

_SCATTER = {
    "swap15": (0.15, 5.0, 8.0),
    "swap30": (0.30, 5.0, 8.0),
    "swap50": (0.50, 5.0, 8.0),
    "scattered": (1.0, 20.0, 25.0),
}  # share of the volumes, mm, degrees


def simulate_motion(
    pattern: Pattern, n_volumes: int, center: np.ndarray, *, seed: int = 0
) -> Motion:
    """Draw a motion; the first volume is at rest.

    Parameters
    ----------
    pattern : {"none", "drift", "moderate", "high", "swap15", "swap30", "swap50", "scattered"}
        See :data:`~eddymotion.simulation.patterns.PATTERNS`.
    n_volumes : int
    center : (3,) array
        Centre of rotation, RAS+ mm.
    seed : int

    Returns
    -------
    Motion
    """
    if pattern == "none":
        return Motion.identity(n_volumes)
    random = np.random.default_rng(seed)
    draw = _scatter if pattern in _SCATTER else _wander
    parameters = draw(pattern, n_volumes, random)
    return Motion(rigid_matrix(parameters[:, :3], parameters[:, 3:], center))


def amplified(motion: Poses, factor: float, center: np.ndarray) -> Poses:
    """Scale the translations of `center` (RAS+ mm) and the angles of a motion."""
    if factor == 1:
        return motion
    scaled = factor * rigid_parameters(motion.matrices, center)
    return replace(motion, matrices=rigid_matrix(scaled[..., :3], scaled[..., 3:], center))


def rigid_matrices(path: Path, center: np.ndarray) -> np.ndarray:
    """Read the matrices (N, 4, 4) of a motion to replay, of any length.

    Parameters and errors as in :func:`replayed_motion`.
    """
    try:
        if path.suffix == ".tsv":
            values = GivenTable.read(path).parameters()
            matrices = rigid_matrix(values[:, :3], values[:, 3:], center)
        else:
            matrices = read_itk(path)
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise EddymotionError(
            f"{path}: cannot be read as a motion ({why(error)}); give a .tsv with the columns "
            f"{' '.join(PARAMETERS)}, or an ITK text file"
        ) from error
    if not far_from_rotations(matrices).max() < RIGID_TOLERANCE:
        raise EddymotionError(
            f"{path}: the transforms are not rigid, as head motion is; give rigid ones"
        )
    return matrices


def replayed_motion(path: str | Path, n_volumes: int, center: np.ndarray) -> Motion:
    """Read a motion to replay.

    Parameters
    ----------
    path : path
        A table with the columns :data:`PARAMETERS` among others (a confounds file, say), or an
        ITK text file with rigid transforms, reference → volume.
    n_volumes : int
        What the gradient scheme asks for.
    center : (3,) array
        The point whose displacement the table holds, RAS+ mm: the centre of the image grid.

    Returns
    -------
    Motion

    Raises
    ------
    EddymotionError
        If it cannot be read, is of another length, or not rigid.
    """
    path = Path(path)
    matrices = rigid_matrices(path, center)
    if len(matrices) != n_volumes:
        raise EddymotionError(
            f"{path}: holds the motion of {len(matrices)} volumes, the scheme has {n_volumes}; "
            "give the scheme that belongs to it, with --scheme or --bval and --bvec"
        )
    return Motion(matrices)


def _wander(pattern: Pattern, n_volumes: int, random: np.random.Generator) -> np.ndarray:
    """Drift and jumps: (N, 6) parameters."""
    knots = np.linspace(0, n_volumes - 1, max(4, n_volumes // 12))
    scale = np.array([0.7] * 3 + [np.deg2rad(0.6)] * 3)
    steps = random.normal(size=(len(knots), 6)) * scale
    parameters = CubicSpline(knots, np.cumsum(steps, axis=0))(np.arange(n_volumes))
    n_jumps, millimetres, degrees = _JUMPS[pattern]
    if n_jumps:
        possible = np.arange(min(2, n_volumes - 1), n_volumes)
        n_jumps = min(n_jumps, len(possible))
        when = np.sort(random.choice(possible, n_jumps, replace=False))
        for volume in when:
            jump = np.concatenate([_direction(random) * millimetres,
                                   _direction(random) * np.deg2rad(degrees)])  # fmt: skip
            parameters[volume:] += jump * random.uniform(0.6, 1.2)
    return parameters - parameters[0]


def _scatter(pattern: Pattern, n_volumes: int, random: np.random.Generator) -> np.ndarray:
    """Independent poses of a random share of the volumes, the first one not: (N, 6) parameters."""
    share, millimetres, degrees = _SCATTER[pattern]
    n_moved = min(round(share * n_volumes), n_volumes - 1)
    moved = 1 + random.choice(n_volumes - 1, n_moved, replace=False)
    extent = np.repeat([millimetres, np.deg2rad(degrees)], 3)
    parameters = np.zeros((n_volumes, 6))
    parameters[moved] = random.uniform(-extent, extent, size=(n_moved, 6))
    return parameters


def _direction(random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=3)
    return vector / np.linalg.norm(vector)

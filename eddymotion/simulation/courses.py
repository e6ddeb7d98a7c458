# SPDX-License-Identifier: Apache-2.0
"""A head that moves while its slices are excited: courses in continuous time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

from eddymotion.errors import EddymotionError
from eddymotion.io.trajectory import read_trajectory
from eddymotion.mapping.rigid import mean_pose, rigid_matrix
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.patterns import COURSES, Course
from eddymotion.simulation.timing import SliceTiming

__all__ = ["COURSES", "Course", "simulate_course"]

NECK_MM = np.array([0.0, -20.0, -60.0])
"""From the middle of the head to where it nods about, RAS+."""

BREATHS_HZ = 0.28

JUMP_S = 0.3
"""What a sudden movement takes."""

Draw = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""Times (T,), how long the first volume takes, random numbers → parameters (T, 6): mm, rad."""


def simulate_course(
    course: Course,
    n_volumes: int,
    n_slices: int,
    timing: SliceTiming,
    center: np.ndarray,
    *,
    amplitude: float = 1.0,
    seed: int = 0,
) -> SlicePoses:
    """Draw a motion that goes on within volumes.

    The mean pose of the first volume is the reference.

    Parameters
    ----------
    course : {"slow-drift", "fast-drift", "nods", "jumps", "breathing"}
        See :data:`~eddymotion.simulation.patterns.COURSES`.
    n_volumes, n_slices : int
    timing : SliceTiming
    center : (3,) array
        Middle of the head, RAS+ mm.
    amplitude : float
        Factor on the motion.
    seed : int

    Returns
    -------
    SlicePoses
    """
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(9,)))
    times = timing.excitations(n_volumes, n_slices)
    parameters = amplitude * _DRAWS[course](times.ravel(), timing.repetition_time, random)
    pivot = center + (NECK_MM if course in ("nods", "breathing") else 0.0)
    matrices = rigid_matrix(parameters[:, :3], parameters[:, 3:], pivot)
    matrices = matrices.reshape(*times.shape, 4, 4)
    to_start = np.linalg.inv(mean_pose(matrices[0], center))
    return SlicePoses(to_start @ matrices, timing.groups(n_slices), times)


def replayed_trajectory(
    path: Path, n_volumes: int, n_slices: int, center: np.ndarray
) -> SlicePoses:
    """Read a motion within volumes to replay.

    Parameters
    ----------
    path : Path
        A table of :mod:`eddymotion.io.trajectory`.
    n_volumes, n_slices : int
        What it has to be of.
    center : (3,) array
        Of the image grid, RAS+ mm.

    Raises
    ------
    EddymotionError
        If it cannot be read, does not have all times, or is of other volumes or slices.
    """
    motion = read_trajectory(path, center)
    if not np.isfinite(motion.times).all():
        raise EddymotionError(
            f"{path}: column time has n/a, but simulation slice by slice needs all times; "
            "complete it"
        )
    if (len(motion), motion.n_slices) != (n_volumes, n_slices):
        raise EddymotionError(
            f"{path}: holds the motion of {len(motion)} volumes of {motion.n_slices} slices, the "
            f"scan has {n_volumes} of {n_slices}; give the scheme and voxel size that belong to it"
        )
    return replace(motion, standard_errors=None)


def _drift(interval: float, millimetres: float, degrees: float) -> Draw:
    """Smooth course through knots every `interval` seconds, which are pulled back to zero."""

    def draw(times: np.ndarray, repetition: float, random: np.random.Generator) -> np.ndarray:
        knots = np.arange(times[0], times[-1] + 4 * interval, interval)
        scale = np.repeat([millimetres, np.deg2rad(degrees)], 3)
        steps = random.normal(size=(len(knots), 6)) * scale
        for knot in range(1, len(knots)):
            steps[knot] += 0.8 * steps[knot - 1]
        return CubicSpline(knots, steps)(times)

    return draw


def _nods(times: np.ndarray, repetition: float, random: np.random.Generator) -> np.ndarray:
    """Nod forward and back, now and then, with some turning; the first volume is at rest."""
    parameters = np.zeros((len(times), 6))
    start = repetition + random.uniform(0, 10)
    while start < times[-1]:
        lasts = random.uniform(1, 5)
        phase = np.clip((times - start) / lasts, 0, 1)
        size = np.array([random.uniform(1, 4), *random.normal(scale=0.7, size=2)])
        stays = random.normal(scale=0.1) * _smooth(phase)
        nod = np.sin(np.pi * phase) ** 2 + stays
        parameters[:, 3:] -= nod[:, None] * np.deg2rad(size)
        start += lasts + random.uniform(6, 24)
    return parameters


def _jumps(times: np.ndarray, repetition: float, random: np.random.Generator) -> np.ndarray:
    """Jump from pose to pose within :data:`JUMP_S`; the first volume is at rest."""
    parameters = np.zeros((len(times), 6))
    when = repetition + random.uniform(6, 18)
    pose = np.zeros(6)
    while when < times[-1]:
        jump = random.normal(size=6) * np.repeat([1.2, np.deg2rad(1.0)], 3)
        jump -= 0.3 * pose  # not ever further away
        pose = pose + jump
        parameters += _smooth(np.clip((times - when) / JUMP_S, 0, 1))[:, None] * jump
        when += random.uniform(8, 32)
    return parameters


def _breathing(times: np.ndarray, repetition: float, random: np.random.Generator) -> np.ndarray:
    """Move as one breathes: along the body and back and forth, and a small nod."""
    size = np.array([0.0, 0.33, 0.52, np.deg2rad(0.42), 0.0, 0.0]) * random.uniform(0.9, 1.1, 6)
    phase = 2 * np.pi * (BREATHS_HZ * times + random.uniform())
    return np.sin(phase)[:, None] * size


def _smooth(phase: np.ndarray) -> np.ndarray:
    """From 0 to 1 with no jump of the velocity."""
    return phase**2 * (3 - 2 * phase)


_DRAWS: dict[Course, Draw] = {
    "slow-drift": _drift(30.0, 0.7, 0.6),
    "fast-drift": _drift(9.0, 1.15, 1.2),
    "nods": _nods,
    "jumps": _jumps,
    "breathing": _breathing,
}

"""How a head moves: known motion to simulate."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.interpolate import CubicSpline

from eddymotion.geometry import Motion, rigid_matrix

Pattern = Literal["none", "drift", "moderate", "high"]
"""Slow drift, drift with three jumps of about 2° and 3 mm, drift with eight larger jumps."""

_JUMPS = {
    "none": (0, 0.0, 0.0),
    "drift": (0, 0.0, 0.0),
    "moderate": (3, 3.0, 2.0),
    "high": (8, 5.0, 4.0),
}  # number, mm, degrees


def simulate_motion(
    pattern: Pattern, n_volumes: int, center: np.ndarray, *, seed: int = 0
) -> Motion:
    """Draw a motion; the first volume is at rest.

    Parameters
    ----------
    pattern : {"none", "drift", "moderate", "high"}
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
    parameters -= parameters[0]
    return Motion(rigid_matrix(parameters[:, :3], parameters[:, 3:], center))


def _direction(random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=3)
    return vector / np.linalg.norm(vector)

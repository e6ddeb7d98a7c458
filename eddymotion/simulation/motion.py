"""How a head moves: known motion to simulate."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.interpolate import CubicSpline

from eddymotion.geometry import Motion, rigid_matrix

Pattern = Literal["none", "drift", "moderate", "high", "swap15", "swap30", "swap50", "scattered"]
"""How the head moves:

- ``none``: at rest
- ``drift``: slow drift
- ``moderate``: drift with three jumps of about 2° and 3 mm
- ``high``: drift with eight larger jumps
- ``swap15``, ``swap30``, ``swap50``: at rest, but 15, 30 or 50 % of the volumes are replaced by
  moved copies, up to 5 mm and 8° along and about each axis (after Cieslak et al. 2024)
- ``scattered``: each volume displaced by itself, up to 20 mm and 25° along and about each axis
"""

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
        See :data:`Pattern`.
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

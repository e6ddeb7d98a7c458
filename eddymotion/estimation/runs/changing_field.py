# SPDX-License-Identifier: Apache-2.0
"""What a field that changes with the head leaves open of poses.

The field of a head changes as the head is tilted against the main field, along z of the scanner.
"""

from __future__ import annotations

import numpy as np

from eddymotion.mapping.rigid import ROTATION_RADIUS_MM

CHANGE_A_RADIAN = 9.0
"""Standard deviation of the change of a field as the head is tilted against the main field, as a
part of that of the field: .11 to .23 a degree in simulated heads."""

OF_CHANGE_BETWEEN = 0.4, 0.1, 0.2
"""Errors of poses that were found together with one field for both runs, as parts of its change in
mm: along the phase encoding, across it, and of rotations at their radius."""

OF_CHANGE_WITHIN = 0.43, 0.35
"""Parts of a change (mm) that the motion of a rigid head takes up where no field is estimated:
along the phase encoding, and of rotations about the axes across it at their radius. Root mean
square of 13 simulated heads; other rotations and translations are .05 and less."""


def errors_between(change_mm: float, along: np.ndarray) -> np.ndarray:
    """Return errors of the pose of a run against the first, mm and rad, (6,).

    Parameters
    ----------
    change_mm : float
        Standard deviation of the change of the field in the brain, as it displaces this run.
    along : (3,) array
        Unit vector along the phase encoding.
    """
    of_along, of_across, of_turns = OF_CHANGE_BETWEEN
    moved = np.hypot(of_along * along, of_across)
    return change_mm * np.append(moved, np.full(3, of_turns / ROTATION_RADIUS_MM))


def errors_within(poses: np.ndarray, spread_mm: np.ndarray) -> np.ndarray:
    """Return errors of volumes whose fields are not estimated, mm and rad, (N, 6).

    Parameters
    ----------
    poses : (N, 4, 4) array
        Of the head, from where the field is known.
    spread_mm : (3,) array
        Standard deviation of the displacement by the field in the brain, along the phase encoding.
    """
    tilts = np.linalg.norm(poses[:, 2, :2], axis=1)
    of_along, of_turns = OF_CHANGE_WITHIN
    across = np.sqrt(np.maximum(spread_mm @ spread_mm - spread_mm**2, 0.0))
    moved = np.append(of_along * np.abs(spread_mm), of_turns / ROTATION_RADIUS_MM * across)
    return CHANGE_A_RADIAN * tilts[:, None] * moved

# SPDX-License-Identifier: Apache-2.0
"""Directions of motion that the images do not determine.

A cylinder may slide along its axis and turn about it, and so may a spinal cord in thick slices: no
image changes. An estimator finds such a motion all the same, since noise has gradients, too, and
with a small standard error.

Let ``J`` be the derivatives of an image by the six unknowns of a pose, in mm (rotations at 50 mm),
of the mean of every other volume (``a``) and of that of the rest (``b``). The noise of the two is
independent, so that ::

    C = Σ_x J_a J_bᵀ

contains only what the volumes share. A direction whose eigenvalue is small relative to the largest
does not change the images: it is held at rest, and reported.
"""

from __future__ import annotations

import logging

import numpy as np
import scipy

from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.samples import MAX_MISSING, Samples

log = logging.getLogger(__name__)

LEAST_SHARE = 0.03
"""Eigenvalue, relative to the largest, below which a direction is not determined. In the fine band
heads have 0.12 and more, cylinders and a spinal cord less than 0.026."""

ENOUGH_SLICES = 4
"""With fewer the edges of the image outweigh what it shows, and nothing can be said."""

MAIN_PART, AXIS_PART = 0.5, 0.95
"""Least part of a direction that is named, and least component for which its axis is named."""

AFFECTED = 0.3
"""A parameter of a pose is not known if it changes by this part of a motion along a direction that
is not determined."""


def undetermined_directions(
    problem: CoupledProblem, samples: Samples, in_mm: np.ndarray
) -> np.ndarray:
    """Find the directions that the volumes of a problem do not show.

    Parameters
    ----------
    problem : CoupledProblem
        At a fine level.
    samples : Samples
        What its volumes show.
    in_mm : (6,) array
        Millimetres for each unit of a twist.

    Returns
    -------
    (k, 6) array
        Orthonormal, translation and rotation about the centre of the brain, in mm.
    """
    seen = samples.missing.mean(axis=0) <= MAX_MISSING
    away = (problem.points - problem.center)[seen].T
    halves = []
    for first in (0, 1):
        n_seen = np.maximum((~samples.missing[first::2][:, seen]).sum(axis=0), 1)
        slopes = samples.slopes[:, first::2][:, :, seen].sum(axis=1) / n_seen
        turned = np.cross(away, slopes, axis=0)
        halves.append(np.concatenate([slopes, turned]) / in_mm[:, None])
    shared = halves[0] @ halves[1].T
    values, vectors = np.linalg.eigh((shared + shared.T) / 2)
    if not values[-1] > 0:
        return np.empty((0, 6))
    shares = ", ".join(f"{value / values[-1]:.2g}" for value in values)
    log.debug("change of the images with motion, least to most: %s", shares)
    return vectors.T[values < LEAST_SHARE * values[-1]]


def free_directions(directions: np.ndarray, in_mm: np.ndarray) -> np.ndarray:
    """Return twists (mm, rad) along all that some directions (k, 6) leave over: (6, 6 − k)."""
    return scipy.linalg.null_space(directions) / in_mm[:, None]


def describe_directions(directions: np.ndarray) -> str:
    """Name directions, the largest parts of each."""
    return "; ".join(_describe_direction(direction) for direction in directions)


def _describe_direction(direction: np.ndarray) -> str:
    names = []
    for kind, part in (("translation along", direction[:3]), ("rotation about", direction[3:])):
        length = np.linalg.norm(part)
        if length < MAIN_PART:
            continue
        unit = part / length * np.sign(part[np.abs(part).argmax()])
        axis = int(np.abs(unit).argmax())
        along = "xyz"[axis] if unit[axis] > AXIS_PART else "({:.2f}, {:.2f}, {:.2f})".format(*unit)
        names.append(f"{kind} {along}")
    return " with ".join(names)

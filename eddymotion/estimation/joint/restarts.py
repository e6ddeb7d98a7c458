# SPDX-License-Identifier: Apache-2.0
"""Poses that depend on where their search began.

Standard errors are inferred from small steps at the solution. With hardly any signal, as at b=5000
and SNR 10, the cost has many shallow minima within some millimetres, and no step shows how far
away the right one is. The search is therefore repeated from a course that is smooth in time. A
volume that the images determine returns to its pose. How far the others end from theirs is added
to the errors of volumes of similar b-value, in each direction.
"""

from __future__ import annotations

import logging

import numpy as np
import scipy

from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.joint.levels import FINE
from eddymotion.estimation.joint.solver import JointSolver
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.machine.memory import give_back_memory
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid

log = logging.getLogger(__name__)

LITTLE_RECOVERED = 0.25
"""Share of a displacement that one step takes back, below which a group has hardly any signal. At
0.3 standard errors were right; at 0.10 to 0.18 the errors of the highest b-values were 1.6 to 3.5
times as large."""

COURSE_VOLUMES = 7
"""Volumes whose median is the course."""

ALIKE_VOLUMES = 12
"""Volumes of the nearest b-values that are pooled: a single one may come back by chance."""

WARNED_MM = 0.5
"""Root-mean-square displacement in a human head above which a warning is given."""


def depends_on_start(group: VolumeGroup, solution: Solution) -> bool:
    """Whether the signal of a solved group is so little that its start may matter."""
    weighted = not solution.problem.gradients.is_b0.all()
    enough = len(group.volumes) >= COURSE_VOLUMES
    return weighted and enough and solution.recovered < LITTLE_RECOVERED


def restart_covariances(solver: JointSolver, group: VolumeGroup, motion: Motion) -> np.ndarray:
    """Return what another start adds to the covariances of the poses of a group, (n, 6, 6).

    Parameters
    ----------
    solver : JointSolver
    group : VolumeGroup
    motion : Motion
        Of the series, solved at the finest level.
    """
    give_back_memory()
    own, center = group.volumes, solver.dwi.brain_center
    start = motion.updated(own, smooth_course(motion.matrices[own], center))
    again = solver.solve(FINE[-1], [group], start)[0]
    twists = log_rigid(np.linalg.inv(motion.matrices[own]) @ again.matrices[own], center)
    twists -= np.median(twists, axis=0)  # all together may go anywhere
    squares = pooled(twists**2, solver.dwi.gradients.bvals[own])
    _warn(group, np.sqrt((squares * solver.in_mm**2).sum(axis=1)) / solver.bands.scale)
    return squares[:, :, None] * np.eye(6)


def smooth_course(matrices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Replace poses (n, 4, 4) by the running median of their twists."""
    twists = log_rigid(matrices, center)
    smooth = scipy.ndimage.median_filter(twists, (COURSE_VOLUMES, 1), mode="nearest")
    return exp_rigid(smooth, center)


def pooled(squares: np.ndarray, bvals: np.ndarray) -> np.ndarray:
    """Average squares (n, 6) over the volumes of the nearest b-values."""
    apart = np.abs(bvals[:, None] - bvals)
    alike = np.argsort(apart, axis=1, kind="stable")[:, :ALIKE_VOLUMES]
    means: np.ndarray = squares[alike].mean(axis=1)
    return means


def _warn(group: VolumeGroup, distances: np.ndarray) -> None:
    """Name the volumes that another start leads elsewhere, by (n,) mm."""
    if (far := distances > WARNED_MM).any():
        log.warning(
            "%d volumes of %s show too little signal to determine their pose: it depends on the "
            "start of the search by %.1f mm, which the standard errors include; exclude them, "
            "or acquire them with more signal",
            far.sum(), group.name, distances.max(),
        )  # fmt: skip

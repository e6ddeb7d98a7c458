# SPDX-License-Identifier: Apache-2.0
"""The share of slow motion that narrow filters miss.

Detail finer than a voxel is not lost but becomes a pattern that stays with the grid while the
head moves, and pulls the poses towards rest. If the head wanders over many voxels this averages
out; if all volumes lie within one, a constant share of the motion is missing: up to a third of
drifts below a millimetre. Wider filters see no such pattern, but more noise in each pose. What a
step with wide filters asks for, regressed on the motion, tells the share of each axis: six numbers
for all volumes together, so that noise hardly enters.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from eddymotion.estimation.equations.coupled import CoupledProblem
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.frames.gradient_pulls import displaced_by_fields
from eddymotion.estimation.joint.solver import JointSolver, group_motion
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.pyramid import Level
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid

log = logging.getLogger(__name__)

WIDE = Level(2.0, 40_000, highpass=3.5)
"""Filters that hardly see the pattern of the grid."""

LIKELY_SHARE = 0.2
"""Standard deviation of the share, before the data are seen."""

SYSTEMATIC_SHARE = 0.02
"""Steps with wide filters have errors of their own, which may go with the motion by so much."""

BY_CHANCE = 1.5
"""All shares count as far as their squares, over those of their errors, are larger than this on
average. Where all counted, four of six series at 3 mm, with shares below a tenth, had errors that
were larger by 5 to 9 %."""

CLEAR_OF_ERRORS = 2.0
"""Motion has to be larger than its errors by this factor: what the model gets wrong is larger with
wider filters, and seems to be missing as well. In random q-space at rest errors grew by 25 %."""

LEAST_WAYS = 1e-15
"""Sum of squares (mm, rad) below which nothing moved along an axis."""

ENOUGH_VOLUMES, PLENTY = 6, 60
"""Fewer volumes do not tell the share from noise; of many, every so many-th is read, so that this
many are at least. With half of 60 directions much of a drift was taken for chance."""


def with_missing_motion(
    solver: JointSolver,
    group: VolumeGroup,
    problem: CoupledProblem,
    motion: Motion,
    covariances: np.ndarray,
) -> tuple[Motion, np.ndarray]:
    """Add the share of the motion of a group that its filters miss.

    Parameters
    ----------
    solver : JointSolver
    group : VolumeGroup
        Of n volumes.
    problem : CoupledProblem
        Of the group, at the last level; its volumes are replaced.
    motion : Motion
        Of the series.
    covariances : (n, 6, 6) array
        Of the errors of the poses of the group.

    Returns
    -------
    motion : Motion
    covariances : (n, 6, 6) array
        Of the error of what was added.
    """
    volumes, center = group.volumes, solver.dwi.brain_center
    unchanged = motion, np.zeros((len(volumes), 6, 6))
    ways = ways_from_the_mean(motion.matrices[volumes], center)
    far = ((ways * solver.in_mm) ** 2).sum(axis=1) / solver.bands.voxel**2
    ways *= np.exp(-far)[:, None]  # voxels away the pattern is another
    ways[:, displaced_by_fields(motion)] = 0.0  # of fields, for the most part
    errors = np.einsum("nkk->nk", covariances)
    if len(volumes) < ENOUGH_VOLUMES or not clear_of_errors(ways, errors).any():
        return unchanged
    some = slice(None, None, max(1, len(volumes) // PLENTY))
    wide = _with_wide_filters(solver, replace(group, volumes=volumes[some]), problem, motion)
    missing = wide.way_left
    if np.isnan(missing).any():
        return unchanged
    shares, variances = missing_shares(ways[some], missing, errors[some])
    log.info(
        "motion of %d volumes: %s %% were missing, held back by detail finer than a voxel",
        len(volumes), ", ".join(f"{100 * share:.0f}" for share in shares),
    )  # fmt: skip
    found = motion.updated(volumes, motion.matrices[volumes] @ exp_rigid(shares * ways, center))
    return found, (variances * ways**2)[:, :, None] * np.eye(6)


def _with_wide_filters(
    solver: JointSolver, group: VolumeGroup, problem: CoupledProblem, motion: Motion
) -> Solution:
    """See volumes, some of those of a problem, with wide filters."""
    wide = replace(
        problem,
        splines=solver.bands.filtered(WIDE, group.volumes, motion.matrices),
        gradients=solver.dwi.gradients.select(group.volumes),
        lost=solver.lost(group),
        blocks=solver.blocks(group, motion),
    )
    some = slice(None, None, max(1, len(problem.points) // WIDE.n_points))
    return Solution(wide.at(some), group_motion(motion, group))


def ways_from_the_mean(matrices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Twists (n, 6) from the mean pose to each of some poses, of mean zero."""
    first = matrices[0]
    mean = first @ exp_rigid(log_rigid(np.linalg.inv(first) @ matrices, center).mean(0), center)
    ways = log_rigid(np.linalg.inv(mean) @ matrices, center)
    return ways - ways.mean(axis=0)


def missing_shares(
    ways: np.ndarray, missing: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Regress what is missing (n, 6) on the ways (n, 6), axis by axis.

    Parameters
    ----------
    ways, missing : (n, 6) array
    errors : (n, 6) array
        Variances of the ways: what is not motion asks for steps of its own.

    Returns
    -------
    shares, variances : (6,) array
        Of the ways, drawn towards none as far as chance explains them all; never below, since the
        grid only holds back. The variances contain what was seen and does not count.
    """
    missing = missing - missing.mean(axis=0)
    squares = _squares(ways)
    fitted = (ways * missing).sum(axis=0) / squares
    rest = ((missing - fitted * ways) ** 2).sum(axis=0) / (len(ways) - 2)
    variances = rest / squares
    clear = clear_of_errors(ways, errors)
    fitted = np.maximum(fitted, 0.0) * clear
    evidence = (fitted**2 / (variances + SYSTEMATIC_SHARE**2)).sum()
    by_chance = BY_CHANCE * np.count_nonzero(clear)
    weights = LIKELY_SHARE**2 / (LIKELY_SHARE**2 + variances)
    shares = fitted * weights * max(1.0 - by_chance / max(evidence, by_chance, 1e-12), 0.0)
    return shares, np.where(fitted > 0, variances, 0.0) + (fitted - shares) ** 2


def clear_of_errors(ways: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """How clear motion (n, 6) is of its errors, variances (n, 6): from 0 to 1, (6,)."""
    return np.clip(1.0 - CLEAR_OF_ERRORS**2 * errors.sum(axis=0) / _squares(ways), 0.0, 1.0)


def _squares(ways: np.ndarray) -> np.ndarray:
    return np.maximum((ways**2).sum(axis=0), LEAST_WAYS)

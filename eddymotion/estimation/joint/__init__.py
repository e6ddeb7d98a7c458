# SPDX-License-Identifier: Apache-2.0
"""All volumes at once.

The loop of :mod:`eddymotion.estimation.lovo` creeps: each prediction is blurred by the motion of
the others. Here one Gauss-Newton step moves all volumes together
(:mod:`eddymotion.estimation.coupled`), coarse to fine, at random points off the grid:

1. b=0 volumes and diffusion-weighted ones are two groups, each consistent within itself, and so
   is each shell that the data do not tie to the others (:mod:`eddymotion.estimation.ties`).
   :mod:`eddymotion.estimation.frames` joins them.
2. Coarse levels use a fixed covariance; they cover 20 mm and 25°, but for volumes far from their
   neighbours, which are tried at many poses (:mod:`eddymotion.estimation.search`). Fine levels
   are band-passed, since what a model gets wrong is smooth in space, and fit the covariance to
   the band.
3. Slices that lost signal are found with the leave-one-out predictions and left out of a last
   solution at the finest level.
4. Volumes that neither their prediction nor their neighbours support are tried at the pose of
   their neighbours; those that fit nowhere are left out.
5. What of the poses follows the direction of diffusion, which no image contradicts, is left to
   the course of the head (:mod:`eddymotion.estimation.direction_pulls`).
6. Standard errors come from how much the solution differs between parts of the brain, and between
   parts of a volume's time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eddymotion.data.gradients import Gradients, forms_shells
from eddymotion.data.series import DWI
from eddymotion.estimation.coupled import CoupledProblem
from eddymotion.estimation.direction_pulls import find_pulls, without_pulls
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.fields import NO_PRIOR
from eddymotion.estimation.joint.solver import (
    COARSE,
    FINE,
    FINE_ITERATIONS,
    JointSolver,
    group_motion,
)
from eddymotion.estimation.joint.standard_errors import (
    HALVES_FACTOR,
    excess_covariance,
    misfit_covariances,
    pulled_by_slices,
)
from eddymotion.estimation.outlier_volumes import retry_outlier_volumes
from eddymotion.estimation.quality import assess
from eddymotion.estimation.solution import Solution
from eddymotion.estimation.ties import joined_in_time, tied_by_data, tied_volumes
from eddymotion.estimation.undetermined import (
    ENOUGH_SLICES,
    describe_directions,
    undetermined_directions,
)
from eddymotion.estimation.unrest import Unrest
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.axes import phase_encoding_vector
from eddymotion.machine.parallel import Progress, one_blas_thread, silent
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.models import LinearModel
from eddymotion.models.base import LEVERAGE_GUARD

log = logging.getLogger(__name__)

FEW_FOR_FIELDS = 6
"""With fewer diffusion-weighted volumes fields are not estimated."""

ENOUGH_FOR_QUADRATIC = 12
"""With fewer, ``auto`` estimates linear fields."""

ENOUGH_FOR_CUBIC, MOST_FOR_CUBIC = 20, 150
"""With fewer or more volumes, fields that follow the head stay quadratic: fewer tell too little,
and normal equations grow with the square of the terms."""


def solve_jointly(
    dwi: DWI,
    *,
    model: LinearModel,
    n_iterations: int = FINE_ITERATIONS,
    eddy_currents: str = "auto",
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
) -> Estimate:
    """Estimate the poses of all volumes together, and their eddy-current fields.

    Parameters
    ----------
    dwi : DWI
    model : LinearModel
        Of the diffusion-weighted volumes; b=0 volumes are predicted by their mean.
    n_iterations : int
        At most so many steps at a level.
    eddy_currents : {"auto", "none", "linear", "quadratic", "cubic"}
        Fields to estimate. ``auto``: as many terms as the scheme allows and the data show.
    seed : int
        Of the random points.
    n_threads : int
        The result does not depend on it.
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    Estimate
        b=0 and diffusion-weighted volumes each in a frame of their own; so may be single shells.
    """
    solver = JointSolver(dwi, np.random.default_rng(seed), n_iterations, n_threads, progress)
    frames = tied_volumes(dwi.gradients, model)
    groups = VolumeGroup.all_of(dwi, model, frames)
    with one_blas_thread():
        motion, problems = _approach(solver, groups, eddy_currents)
        found = _determined(solver, groups, problems, frames, motion)
        if found is not None:
            del problems
            frames, solver = found
            groups = VolumeGroup.all_of(dwi, model, frames)
            motion = _approach(solver, groups, eddy_currents)[0]
        motion, problems = solver.solve(FINE[-1], groups, motion)
        motion = joined_in_time(motion, frames, dwi.brain_center)
        judged = assess(dwi, motion, model, random_seed=seed, n_threads=n_threads)
        retried = retry_outlier_volumes(dwi, motion, judged, seed=seed, n_threads=n_threads)
        moved = np.empty(0, int)
        if retried is not None:
            motion, judged = retried.motion, retried.quality
            moved = np.union1d(retried.recovered, retried.unplaced)
            again = [
                group.without(retried.unplaced) for group in groups if group.can_recover(moved)
            ]
            again = [group for group in again if len(group.volumes) > 1]
            for level in COARSE[1:] if motion.eddy_currents is None else COARSE[-1:]:
                motion = solver.solve(level, again, motion)[0]  # outlier volumes led others astray
            groups = [group.without(retried.unplaced) for group in groups]
            groups = [group for group in groups if len(group.volumes) > 1]
        if judged.outliers.flagged.any() or retried is not None:
            del problems  # they hold the bands of all volumes: memory
            solver.leave_out(judged.outliers, moved)
            motion, problems = solver.solve(FINE[-1], groups, motion)
        by_noise, by_misfit = np.zeros((len(dwi), 6, 6)), np.zeros((len(dwi), 6, 6))
        for volumes in (dwi.gradients.b0s, *frames):
            by_misfit[volumes] = misfit_covariances(dwi, volumes)
        covariances, apart = by_misfit.copy(), np.full_like(by_misfit, np.nan)
        slicing = dwi.acquisition.slicing
        for group, problem in zip(groups, problems, strict=True):
            solution, volumes = Solution(problem, group_motion(motion, group)), group.volumes
            scatter = solution.scatter_of_halves()
            apart[volumes] = solution.scatter_of_periods(slicing, dwi.affine, dwi.n_slices)
            solution.release()
            by_noise[volumes] = solution.covariances()
            covariances[volumes] += by_noise[volumes] / solution.recovered**2
            factor = max(HALVES_FACTOR, 1 / solution.recovered)
            covariances[volumes] += excess_covariance(covariances[volumes], factor**2 * scatter)
            pulls = solver.pulls_of_slices(problem, group, motion)
            covariances[volumes] += pulled_by_slices(by_noise[volumes], pulls)
        motion = _smoothed_course(solver, groups, motion, covariances)
        covariances += solver.untold(motion, groups[-1])
        unrest = Unrest(covariances, apart, by_noise, by_misfit, judged.outliers.flagged)
    known = _known(dwi, groups, problems, frames)
    unplaced = np.zeros(len(dwi), bool)
    if retried is not None:
        unplaced[retried.unplaced] = True
    known &= ~unplaced
    return Estimate(
        fill_unpredicted(dwi, motion, known, model, groups=frames, unplaced=unplaced),
        np.where(known[:, None, None], covariances + unrest.covariances, np.nan),
        frames if len(frames) > 1 else None,
        unplaced if unplaced.any() else None,
        solver.undetermined if len(solver.undetermined) else None,
        unrest,
    )


def fields_are_sought(gradients: Gradients, eddy_currents: str) -> bool:
    """Whether fields are estimated at all, where they are asked for."""
    together = gradients.shells if forms_shells(gradients) else [gradients.dwis]
    return eddy_currents != "none" and max(map(len, together), default=0) >= FEW_FOR_FIELDS


def _approach(
    solver: JointSolver, groups: Sequence[VolumeGroup], eddy_currents: str
) -> tuple[Motion, list[CoupledProblem]]:
    """Solve from rest up to the first fine level."""
    motion = Motion.identity(len(solver.dwi))
    for level in COARSE:
        motion = solver.solve(level, groups, motion)[0]  # nothing else kept: memory
    motion = solver.seek(groups, motion)
    motion = with_fields(solver, groups, motion, eddy_currents)
    motion, problems = solver.solve(FINE[0], groups, motion)
    if motion.eddy_currents is not None:
        auto = eddy_currents == "auto"
        motion = solver.weigh(motion, problems[-1], groups[-1], by_evidence=auto)
        if motion.eddy_currents is None:
            motion, problems = solver.solve(FINE[0], groups, motion)
        elif auto and solver.prior.poses is not None:
            motion, problems = with_cubic_fields(solver, groups, motion, problems)
    return motion, problems


def with_cubic_fields(
    solver: JointSolver,
    groups: Sequence[VolumeGroup],
    motion: Motion,
    problems: list[CoupledProblem],
) -> tuple[Motion, list[CoupledProblem]]:
    """Go on with cubic fields, where these follow the head, too, and there are volumes enough.

    What eddy currents do is smooth, but a head that pitches changes the field beside its cavities:
    quadratic fields leave a tenth of that, and the poses suffer from it.
    """
    eddy, quadratic = motion.eddy_currents, solver.prior
    n_volumes = len(groups[-1].volumes)
    if eddy is None or not ENOUGH_FOR_CUBIC <= n_volumes <= MOST_FOR_CUBIC:
        return motion, problems
    solver.prior = NO_PRIOR
    finer = replace(motion, eddy_currents=eddy.of_order("cubic"))
    finer, of_finer = solver.solve(FINE[0], groups, finer)
    found = solver.response(finer, groups[-1], slice(N_TERMS["quadratic"], None))
    if found is None or not found.is_shown:
        solver.prior = quadratic
        return motion, problems
    finer = solver.weigh(finer, of_finer[-1], groups[-1], by_evidence=True, follow=True)
    return finer, of_finer


def _determined(
    solver: JointSolver,
    groups: Sequence[VolumeGroup],
    problems: Sequence[CoupledProblem],
    frames: Sequence[np.ndarray],
    motion: Motion,
) -> tuple[list[np.ndarray], JointSolver] | None:
    """Look for what the data do not determine, once they have been brought close to each other.

    Returns
    -------
    frames : list of index arrays
    solver : JointSolver
        With which to start again; None where all is determined.
    """
    problem, of_group = problems[-1], group_motion(motion, groups[-1])
    directions = solver.undetermined
    if min(solver.dwi.shape) >= ENOUGH_SLICES:
        directions = undetermined_directions(problem, of_group, solver.in_mm)
    table = solver.dwi.gradients.rotated(motion.rotations)
    parted = tied_by_data(frames, table, problem.model)
    if not len(directions) and len(parted) == len(frames):
        return None
    if len(directions):
        log.warning(
            "the images hardly change with %s: not determined, and taken as at rest",
            describe_directions(directions),
        )
    return parted, replace(solver, undetermined=directions, prior=NO_PRIOR)


def with_fields(
    solver: JointSolver,
    groups: Sequence[VolumeGroup],
    motion: Motion,
    eddy_currents: str,
) -> Motion:
    """Start the fields at the last coarse level."""
    dwi = solver.dwi
    n_dwis = len(groups[-1].volumes)
    if eddy_currents == "none" or not groups[-1].has_fields or n_dwis < FEW_FOR_FIELDS:
        return motion
    order = eddy_currents
    if order == "auto":
        order = "quadratic" if n_dwis >= ENOUGH_FOR_QUADRATIC else "linear"
    pe = dwi.acquisition.common_phase_encoding
    if pe is None:
        axis = "ijk"[solver.phase_encoding_axis(groups[-1], motion)]
        log.info("phase-encoding axis: %s, found from the data", axis)
        pe = phase_encoding_vector(dwi.affine, axis)
    eddy = EddyCurrents.none(len(dwi), "linear", pe, dwi.center)
    motion = solver.solve(COARSE[-1], groups, replace(motion, eddy_currents=eddy))[0]
    assert motion.eddy_currents is not None
    return replace(motion, eddy_currents=motion.eddy_currents.of_order(order))


def _smoothed_course(
    solver: JointSolver, groups: Sequence[VolumeGroup], motion: Motion, covariances: np.ndarray
) -> Motion:
    """Take out of the poses what follows the direction and not the course of the head."""
    if len(solver.undetermined):
        return motion
    gradients, center = solver.dwi.gradients, solver.dwi.brain_center
    for group in groups:
        about = group.volumes, covariances, center, solver.in_mm
        if (found := find_pulls(motion, gradients, *about)) is not None:
            log.info("motion of %s: %s", group.name, found)
            motion = without_pulls(motion, group.volumes, found, center, solver.in_mm)
    return motion


def _known(
    dwi: DWI,
    groups: Sequence[VolumeGroup],
    problems: Sequence[CoupledProblem],
    frames: Sequence[np.ndarray],
) -> np.ndarray:
    """Whether the others say anything about a volume, (N,)."""
    known = dwi.gradients.is_b0.copy()  # an only b=0 is the frame itself
    for group, problem in zip(groups, problems, strict=True):
        leverage = np.diag(problem.model.precision(problem.gradients))
        known[group.volumes] = leverage > LEVERAGE_GUARD * max(1.0, leverage.max())
    if known[dwi.gradients.dwis].any():
        for frame in frames:
            known[frame] |= len(frame) == 1  # alone in a frame that time and images join
    return known

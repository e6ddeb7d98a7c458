# SPDX-License-Identifier: Apache-2.0
"""All volumes at once.

The loop of :mod:`eddymotion.estimation.lovo` creeps: each prediction is blurred by the motion of
the others. Here one Gauss-Newton step moves all volumes together
(:mod:`eddymotion.estimation.equations.coupled`), coarse to fine, at random points off the grid:

1. b=0 volumes and diffusion-weighted ones are two groups, each consistent within itself, and so
   is each shell that the data do not tie to the others (:mod:`eddymotion.estimation.frames.ties`).
   :mod:`eddymotion.estimation.frames` joins them.
2. Coarse levels use a fixed covariance; they cover 20 mm and 25°, but for volumes far from their
   neighbours, which are tried at many poses (:mod:`eddymotion.estimation.equations.search`),
   against b=0 as well (:mod:`eddymotion.estimation.frames.anchors`). Fine levels are band-passed,
   since what a model gets wrong is smooth in space, and fit the covariance to the band.
3. Directions of motion that the images do not show are held at rest, and shells that turn out not
   to be tied are parted; then all starts again.
4. Volumes that neither their prediction nor their neighbours support are tried at the pose of
   their neighbours; those that fit nowhere are left out.
5. Slices that lost signal are found with the leave-one-out predictions and left out of the
   solution at the finest level, which is the last.
6. Standard errors come from how much the solution differs between parts of the brain, and between
   parts of a volume's time.
7. What of the poses follows the direction of diffusion, which no image contradicts, is left to
   the course of the head (:mod:`eddymotion.estimation.frames.direction_pulls`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eddymotion.data.gradients import Gradients, forms_shells
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.equations.undetermined import (
    ENOUGH_SLICES,
    describe_directions,
    undetermined_directions,
)
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.fields import NO_PRIOR
from eddymotion.estimation.frames.direction_pulls import leave_to_the_course
from eddymotion.estimation.frames.ties import joined_in_time, tied_by_data, tied_volumes
from eddymotion.estimation.joint.solver import (
    COARSE,
    FINE,
    FINE_ITERATIONS,
    JointSolver,
)
from eddymotion.estimation.joint.standard_errors import PoseErrors, pose_errors
from eddymotion.estimation.outlier_volumes import retry_outlier_volumes
from eddymotion.estimation.quality import Quality, assess
from eddymotion.estimation.volume_groups import VolumeGroup, groups_without
from eddymotion.images.axes import phase_encoding_vector
from eddymotion.machine.memory import give_back_memory
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

CLEAR_GAIN = 1.2
"""By how much fields along one axis lower the cost more than along another, where that axis is
searched for. On simulated heads with fields of 0.1 mm or more it was 1.4 to 6 times, without any
1.0 to 1.3."""

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
    steps = JointSteps(solver, model, eddy_currents, seed)
    with one_blas_thread():
        steps.approach()
        steps.hold_what_is_not_determined()
        steps.judge()
        steps.retry_doubtful_volumes()
        steps.leave_out_lost_slices()
        steps.refine()
        errors = steps.errors()
        steps.leave_to_the_course(errors)
        errors = steps.with_untold(errors)
    return steps.estimate(errors)


@dataclass(eq=False)
class JointSteps:
    """The steps of :func:`solve_jointly`, and what flows from one to the next.

    Parameters
    ----------
    solver : JointSolver
    model : LinearModel
    eddy_currents : str
    seed : int
        As there.

    Attributes
    ----------
    frames : list of index arrays
        Diffusion-weighted volumes that the data tie to each other.
    groups : list of VolumeGroup
        Volumes that are solved together; none that are not placed.
    motion : Motion
    solutions : list of Solution
        Of the groups, as they were solved last.
    judged : Quality
    moved, unplaced : index arrays
        Volumes that were retried and are elsewhere now; those of them that fit nowhere.
    """

    solver: JointSolver
    model: LinearModel
    eddy_currents: str
    seed: int
    solutions: list[Solution] = field(default_factory=list, init=False)
    judged: Quality = field(init=False)
    moved: np.ndarray = field(default_factory=lambda: np.empty(0, int), init=False)
    unplaced: np.ndarray = field(default_factory=lambda: np.empty(0, int), init=False)

    def __post_init__(self) -> None:
        self.dwi = self.solver.dwi
        self.motion = Motion.identity(len(self.dwi))
        self._tie(tied_volumes(self.dwi.gradients, self.model))

    def _tie(self, frames: list[np.ndarray]) -> None:
        self.frames, self.groups = frames, VolumeGroup.all_of(self.dwi, self.model, frames)

    def approach(self) -> None:
        """Solve from rest up to the first fine level, fields included."""
        self.motion, self.solutions = _approach(self.solver, self.groups, self.eddy_currents)

    def hold_what_is_not_determined(self) -> None:
        """Start again where the data do not determine all directions, or tie fewer volumes."""
        found = _determined(self.solver, self.groups, self.solutions, self.frames, self.motion)
        self.solutions = []  # they hold the bands of all volumes: memory
        if found is not None:
            frames, self.solver = found
            self._tie(frames)
            self.motion = _approach(self.solver, self.groups, self.eddy_currents)[0]

    def judge(self) -> None:
        """Compare the volumes with their predictions, in frames that time joins."""
        give_back_memory()
        self.motion = joined_in_time(self.motion, self.frames, self.dwi.brain_center)
        self.judged = assess(
            self.dwi,
            self.motion,
            self.model,
            random_seed=self.seed,
            n_threads=self.solver.n_threads,
        )

    def retry_doubtful_volumes(self) -> None:
        """Put volumes at the pose of their neighbours where they fit better.

        The others were led astray by them, and go through coarse levels again. These would
        lose volumes that lie far from their neighbours: a group with such is sought again.
        """
        retried = retry_outlier_volumes(
            self.dwi, self.motion, self.judged, seed=self.seed, n_threads=self.solver.n_threads
        )
        if retried is None:
            return
        self.motion, self.judged = retried.motion, retried.quality
        self.unplaced = retried.unplaced
        self.moved = np.union1d(retried.recovered, retried.unplaced)
        again = [group for group in self.groups if group.can_recover(self.moved)]
        again = groups_without(again, self.unplaced)
        near = [group for group in again if not len(self.solver.to_seek(group, self.motion))]
        for level in COARSE[1:] if self.motion.eddy_currents is None else COARSE[-1:]:
            self.motion = self.solver.solve(level, near, self.motion)[0]
        self.motion = self.solver.seek(again, self.motion)
        self.groups = groups_without(self.groups, self.unplaced)

    def leave_out_lost_slices(self) -> None:
        """Go on without slices that lost signal, and from where volumes are now."""
        if self.judged.outliers.flagged.any() or len(self.moved):
            self.solver.leave_out(self.judged.outliers, self.moved)

    def refine(self) -> None:
        """Solve at the finest level."""
        give_back_memory()
        self.motion, self.solutions = self.solver.solve(FINE[-1], self.groups, self.motion)

    def errors(self) -> PoseErrors:
        """Find how far off the poses may be, by what the last steps saw."""
        return pose_errors(self.solver, self.frames, self.groups, self.solutions, self.motion)

    def leave_to_the_course(self, errors: PoseErrors) -> None:
        """Take out of the poses what follows the direction and not the course of the head."""
        if len(self.solver.undetermined):
            return
        self.motion = leave_to_the_course(
            self.motion,
            errors.covariances,
            self.dwi.gradients,
            [group.volumes for group in self.groups],
            self.dwi.brain_center,
            self.solver.in_mm,
        )

    def with_untold(self, errors: PoseErrors) -> PoseErrors:
        """Add what fields that follow the head leave open, and what b=0 finds elsewhere."""
        untold = self.solver.untold(self.motion, self.groups[-1])
        untold = untold + self.solver.parted.covariances(len(self.dwi))
        self.solver.parted.warn()
        return replace(errors, covariances=errors.covariances + untold)

    def estimate(self, errors: PoseErrors) -> Estimate:
        """Put together what was found; volumes that nothing predicts get a neighbour's pose."""
        unplaced = np.isin(np.arange(len(self.dwi)), self.unplaced)
        known = _known(self.dwi, self.groups, self.solutions, self.frames) & ~unplaced
        unrest, held = errors.unrest(self.judged.outliers.flagged), self.solver.undetermined
        motion = self.solver.with_offsets_of_poses(self.motion, self.groups[-1])
        return Estimate(
            fill_unpredicted(
                self.dwi, motion, known, self.model, groups=self.frames, unplaced=unplaced
            ),
            np.where(known[:, None, None], errors.covariances + unrest.covariances, np.nan),
            self.frames if len(self.frames) > 1 else None,
            unplaced if unplaced.any() else None,
            held if len(held) else None,
            unrest,
        )


def fields_are_sought(gradients: Gradients, eddy_currents: str) -> bool:
    """Whether fields are estimated at all, where they are asked for."""
    together = gradients.shells if forms_shells(gradients) else [gradients.dwis]
    return eddy_currents != "none" and max(map(len, together), default=0) >= FEW_FOR_FIELDS


def _approach(
    solver: JointSolver, groups: Sequence[VolumeGroup], eddy_currents: str
) -> tuple[Motion, list[Solution]]:
    """Solve from rest up to the first fine level."""
    motion = Motion.identity(len(solver.dwi))
    for level in COARSE:
        motion = solver.solve(level, groups, motion)[0]  # nothing else kept: memory
    motion = solver.seek(groups, motion)
    motion = with_fields(solver, groups, motion, eddy_currents)
    motion, solutions = solver.solve(FINE[0], groups, motion)
    if motion.eddy_currents is not None:
        auto = eddy_currents == "auto"
        motion = solver.weigh(motion, solutions[-1], groups[-1], by_evidence=auto)
        if motion.eddy_currents is None:
            motion, solutions = solver.solve(FINE[0], groups, motion)
        elif auto and solver.prior.poses is not None:
            motion, solutions = with_cubic_fields(solver, groups, motion, solutions)
    return motion, solutions


def with_cubic_fields(
    solver: JointSolver,
    groups: Sequence[VolumeGroup],
    motion: Motion,
    solutions: list[Solution],
) -> tuple[Motion, list[Solution]]:
    """Go on with cubic fields, where these follow the head, too, and there are volumes enough.

    What eddy currents do is smooth, but a head that pitches changes the field beside its cavities:
    quadratic fields leave a tenth of that, and the poses suffer from it.
    """
    eddy, quadratic = motion.eddy_currents, (solver.prior, solver.chance.copy())
    n_volumes = len(groups[-1].volumes)
    if eddy is None or not ENOUGH_FOR_CUBIC <= n_volumes <= MOST_FOR_CUBIC:
        return motion, solutions
    solver.prior = NO_PRIOR
    finer = replace(motion, eddy_currents=eddy.of_order("cubic"))
    finer, of_finer = solver.solve(FINE[0], groups, finer)
    found = solver.response(finer, groups[-1], slice(N_TERMS["quadratic"], None))
    if found is None or not found.is_shown:
        solver.prior, solver.chance = quadratic
        return motion, solutions
    finer = solver.weigh(finer, of_finer[-1], groups[-1], by_evidence=True, follow=True)
    return finer, of_finer


def _determined(
    solver: JointSolver,
    groups: Sequence[VolumeGroup],
    solutions: Sequence[Solution],
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
    solution = solutions[-1]
    directions = solver.undetermined
    if min(solver.dwi.shape) >= ENOUGH_SLICES:
        directions = undetermined_directions(solution.problem, solution.samples, solver.in_mm)
    table = solver.dwi.gradients.rotated(motion.rotations)
    parted = tied_by_data(frames, table, solution.problem.model)
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
        second, best = np.sort(gains := solver.gains_of_fields(groups[-1], motion))[1:]
        if eddy_currents == "auto" and not best > CLEAR_GAIN * second:
            log.info("eddy currents: none along any axis; the phase encoding is not told")
            return motion
        axis = "ijk"[int(np.argmax(gains))]
        log.info("phase-encoding axis: %s, found from the data", axis)
        pe = phase_encoding_vector(dwi.affine, axis)
    eddy = EddyCurrents.none(len(dwi), "linear", pe, dwi.center)
    motion = solver.solve(COARSE[-1], groups, replace(motion, eddy_currents=eddy))[0]
    assert motion.eddy_currents is not None
    return replace(motion, eddy_currents=motion.eddy_currents.of_order(order))


def _known(
    dwi: DWI,
    groups: Sequence[VolumeGroup],
    solutions: Sequence[Solution],
    frames: Sequence[np.ndarray],
) -> np.ndarray:
    """Whether the others say anything about a volume, (N,)."""
    known = dwi.gradients.is_b0.copy()  # an only b=0 is the frame itself
    for group, solution in zip(groups, solutions, strict=True):
        problem = solution.problem
        leverage = np.diag(problem.model.precision(problem.gradients))
        known[group.volumes] = leverage > LEVERAGE_GUARD * max(1.0, leverage.max())
    if known[dwi.gradients.dwis].any():
        for frame in frames:
            known[frame] |= len(frame) == 1  # alone in a frame that time and images join
    return known

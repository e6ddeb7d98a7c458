# SPDX-License-Identifier: Apache-2.0
"""The joint estimator: all volumes at once.

The loop of :mod:`eddymotion.estimation.lovo` converges slowly, since each prediction is blurred by
the motion of the other volumes. Here one Gauss-Newton step moves all volumes together
(:mod:`eddymotion.estimation.equations.coupled`), coarse to fine, at random points off the grid:

1. b=0 volumes and diffusion-weighted ones are two groups, each consistent within itself, and so
   is each shell that the data do not tie to the others (:mod:`eddymotion.estimation.frames.ties`).
   :mod:`eddymotion.estimation.frames` joins them.
2. Coarse levels use a fixed covariance and reach 20 mm and 25°. Volumes farther from their
   neighbours are tried at many poses (:mod:`eddymotion.estimation.equations.search`), against the
   b=0 volumes as well (:mod:`eddymotion.estimation.frames.anchors`). Fine levels are band-passed,
   since what a model gets wrong is smooth in space, and fit the covariance to the band.
3. If the images do not determine all directions of motion, the others are held at rest; shells
   that turn out not to be tied are solved apart. In both cases the estimation starts again.
4. Volumes whose pose neither their prediction nor their neighbours support are tried at the pose
   of the neighbours; those that fit nowhere are left out.
5. Slices that lost signal are found with the leave-one-out predictions and left out of the
   solution at the finest level, which is the last.
6. Standard errors come from how much the solution differs between parts of the brain, and between
   parts of the time in which a volume was acquired.
7. The share of slow motion that narrow filters miss is added
   (:mod:`eddymotion.estimation.joint.missing_motion`).
8. No image contradicts a part of the poses that follows the direction of diffusion; there the
   course of the head decides (:mod:`eddymotion.estimation.frames.gradient_pulls`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eddymotion.data.checks.b0_volumes import empty_b0s
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.equations.undetermined import (
    ENOUGH_SLICES,
    describe_directions,
    undetermined_directions,
)
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.frames.gradient_pulls import remove_gradient_pulls
from eddymotion.estimation.frames.ties import joined_in_time, tied_by_data, tied_volumes
from eddymotion.estimation.joint.first_levels import solve_first_levels
from eddymotion.estimation.joint.levels import COARSE, FINE, FINE_ITERATIONS
from eddymotion.estimation.joint.missing_motion import with_missing_motion
from eddymotion.estimation.joint.outlier_search import OutlierSearch
from eddymotion.estimation.joint.restarts import depends_on_start, restart_covariances
from eddymotion.estimation.joint.solver import JointSolver
from eddymotion.estimation.joint.standard_errors import PoseErrors, pose_errors
from eddymotion.estimation.outlier_volumes import retry_outlier_volumes
from eddymotion.estimation.quality import Quality, assess
from eddymotion.estimation.volume_groups import VolumeGroup, groups_without
from eddymotion.machine.memory import give_back_memory
from eddymotion.machine.parallel import Compute, one_blas_thread
from eddymotion.mapping.motion import Motion
from eddymotion.models import AverageModel, LinearModel
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.wording import listed

log = logging.getLogger(__name__)


def solve_jointly(
    dwi: DWI,
    *,
    model: LinearModel,
    max_steps: int = FINE_ITERATIONS,
    eddy_currents: str = "auto",
    compute: Compute | None = None,
) -> Estimate:
    """Estimate the poses of all volumes together, and their eddy-current fields.

    Parameters
    ----------
    dwi : DWI
    model : LinearModel
        Of the diffusion-weighted volumes; b=0 volumes are predicted by their mean.
    max_steps : int
        Largest number of steps at a level.
    eddy_currents : {"auto", "none", "linear", "quadratic", "cubic"}
        Fields to estimate. ``auto``: as many terms as the scheme allows and the data show.
    compute : Compute, optional

    Returns
    -------
    Estimate
        b=0 and diffusion-weighted volumes, and possibly single shells, each have a frame of their
        own.
    """
    steps = JointSteps(JointSolver(dwi, max_steps, compute or Compute()), model, eddy_currents)
    with one_blas_thread():
        steps.solve_first_levels()
        steps.hold_what_is_not_determined()
        steps.judge()
        steps.retry_doubtful_volumes()
        steps.leave_out_lost_slices()
        steps.refine()
        errors = steps.with_restarts(steps.errors())
        errors = steps.add_missing_motion(errors)
        errors = steps.remove_gradient_pulls(errors)
        errors = steps.with_ambiguities(errors)
        return steps.estimate(errors)


@dataclass(eq=False)
class JointSteps:
    """The steps of :func:`solve_jointly`, and what flows from one to the next.

    Parameters
    ----------
    solver : JointSolver
    model : LinearModel
    eddy_currents : str
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
    known : (N,) bool array
        Volumes whose pose the others determine.
    judged : Quality
    common_motion : (N, 6, 6) array or None
        Covariance of motion that all volumes of a group share, as the head follows gradients.
    removed : (N, 6) array or None
        Twists after the poses that were removed from them, as they follow the direction.
    moved, unplaced : index arrays
        Volumes that were retried and are elsewhere now; volumes that fit nowhere, or show no head.
    """

    solver: JointSolver
    model: LinearModel
    eddy_currents: str
    solutions: list[Solution] = field(default_factory=list, init=False)
    known: np.ndarray = field(init=False)
    judged: Quality = field(init=False)
    common_motion: np.ndarray | None = field(default=None, init=False)
    removed: np.ndarray | None = field(default=None, init=False)
    moved: np.ndarray = field(default_factory=lambda: np.empty(0, int), init=False)
    unplaced: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.dwi, self.compute = self.solver.dwi, self.solver.compute
        self.search, self.unplaced = OutlierSearch(self.solver), empty_b0s(self.dwi)
        self.motion = Motion.identity(len(self.dwi))
        self._tie(tied_volumes(self.dwi.gradients, self.model))

    def _tie(self, frames: list[np.ndarray]) -> None:
        self.frames = frames
        groups = VolumeGroup.all_of(self.dwi, self.model, frames)
        self.groups = groups_without(groups, self.unplaced)

    def solve_first_levels(self) -> None:
        """Solve from rest up to the first fine level, fields included."""
        self.motion, self.solutions = solve_first_levels(
            self.solver, self.search, self.groups, self.eddy_currents
        )

    def hold_what_is_not_determined(self) -> None:
        """Start again where the data do not determine all directions, or tie fewer volumes."""
        directions, frames = self._undetermined(), self._tied_by_data()
        self.solutions = []  # they hold the bands of all volumes: memory
        if not len(directions) and len(frames) == len(self.frames):
            return
        if len(directions):
            log.warning(
                "the images hardly change with %s: not determined, and assumed to be at rest",
                describe_directions(directions),
            )
        self.solver.hold(directions)
        self._tie(frames)
        self.solve_first_levels()
        self.solutions = []

    def _undetermined(self) -> np.ndarray:
        """Directions that the images do not show, once they are close to each other, (k, 6)."""
        solution = self.solutions[-1]
        if min(self.dwi.shape) < ENOUGH_SLICES:
            return self.solver.undetermined
        return undetermined_directions(solution.problem, solution.samples, self.solver.in_mm)

    def _tied_by_data(self) -> list[np.ndarray]:
        """Group the diffusion-weighted volumes that the data, as aligned so far, tie together."""
        table = self.dwi.gradients.rotated(self.motion.rotations)
        return tied_by_data(self.frames, table, self.solutions[-1].problem.model)

    def judge(self) -> None:
        """Compare the volumes with their predictions, frames joined by the course of the head."""
        give_back_memory()
        self.motion = joined_in_time(self.motion, self.frames, self.dwi.brain_center)
        if len(self.unplaced):
            self.motion = replace(self.motion, unplaced=self._are_unplaced)
        self.judged = assess(
            self.dwi,
            self.motion,
            self.model,
            random_seed=self.compute.seed,
            n_threads=self.compute.n_threads,
        )

    def retry_doubtful_volumes(self) -> None:
        """Put volumes at the pose of their neighbours where they fit better.

        They have led the other volumes astray, which go through the coarse levels again; a group
        with volumes far from their neighbours, which coarse levels would lose, is searched again.
        """
        seed, n_threads = self.compute.seed, self.compute.n_threads
        retried = retry_outlier_volumes(
            self.dwi, self.motion, self.judged, seed=seed, n_threads=n_threads
        )
        self.motion = replace(self.motion, unplaced=None)
        if retried is None:
            return
        self.motion, self.judged = retried.motion, retried.quality
        self.unplaced = np.union1d(self.unplaced, retried.unplaced)
        self.moved = np.union1d(retried.recovered, retried.unplaced)
        again = [group for group in self.groups if group.can_recover(self.moved)]
        again = groups_without(again, self.unplaced)
        near = [group for group in again if not len(self.search.far(group, self.motion))]
        for level in COARSE[1:] if self.motion.eddy_currents is None else COARSE[-1:]:
            self.motion = self.solver.solve(level, near, self.motion)[0]
        self.motion = self.search.run(again, self.motion)
        self.groups = groups_without(self.groups, self.unplaced)

    def leave_out_lost_slices(self) -> None:
        """Go on without slices that lost signal, and from where volumes are now."""
        if self.judged.outliers.flagged.any() or len(self.moved):
            self.solver.bands.leave_out(self.judged.outliers, self.moved)

    def refine(self) -> None:
        """Solve at the finest level."""
        give_back_memory()
        self.motion, self.solutions = self.solver.solve(FINE[-1], self.groups, self.motion)
        self.known = _known(self.dwi, self.groups, self.solutions, self.frames)

    def errors(self) -> PoseErrors:
        """Estimate the errors of the poses from what the last steps have read."""
        return pose_errors(self.solver, self.frames, self.groups, self.solutions, self.motion)

    def with_restarts(self, errors: PoseErrors) -> PoseErrors:
        """Add how far the solution depends on its start, where the signal is weak enough."""
        covariances = errors.covariances.copy()
        for group, solution in zip(self.groups, self.solutions, strict=True):
            if depends_on_start(group, solution) and not len(self.solver.undetermined):
                covariances[group.volumes] += restart_covariances(self.solver, group, self.motion)
        return replace(errors, covariances=covariances)

    def add_missing_motion(self, errors: PoseErrors) -> PoseErrors:
        """Add the share of the motion that the grid holds back, and the error of it."""
        covariances = errors.covariances.copy()
        problems = [replace(solution.problem, splines=()) for solution in self.solutions]
        self.solutions = []  # they hold the bands of all volumes: memory
        self.solver.bands.release()
        for group, problem in zip(self.groups, problems, strict=True):
            if group.widening == 1.0:
                own = group.volumes
                self.motion, more = with_missing_motion(
                    self.solver, group, problem, self.motion, covariances[own]
                )
                covariances[own] += more
        return replace(errors, covariances=covariances)

    def remove_gradient_pulls(self, errors: PoseErrors) -> PoseErrors:
        """Remove from the poses what follows the gradient, not the head's course.

        Return the errors, with what is not determined of it.
        """
        if len(self.solver.undetermined):
            return errors
        found = remove_gradient_pulls(
            self.motion,
            errors.covariances,
            self.dwi.gradients,
            [group.volumes for group in self.groups],
            self.dwi.brain_center,
            self.solver.in_mm,
        )
        self.motion, self.common_motion, self.removed = found.motion, found.common, found.removed
        _warn_of_vibration(found.common, self.solver.in_mm)
        _warn_of_b_values(found.not_determined, errors.covariances, self.solver.in_mm)
        return replace(errors, covariances=errors.covariances + found.not_determined)

    def with_ambiguities(self, errors: PoseErrors) -> PoseErrors:
        """Add what fields leave open that follow the head, and where b=0 images disagree."""
        disagreement = self.search.disagreement
        disagreement.warn()
        more = self.solver.fields.covariances(self.motion, self.groups[-1])
        more = more + disagreement.covariances(len(self.dwi))
        return replace(errors, covariances=errors.covariances + more)

    @property
    def _are_unplaced(self) -> np.ndarray:
        """Whether each volume fits nowhere, (N,) bool."""
        return np.isin(np.arange(len(self.dwi)), self.unplaced)

    def estimate(self, errors: PoseErrors) -> Estimate:
        """Put together what was found; volumes that nothing predicts get a neighbour's pose."""
        unplaced = self._are_unplaced
        known = self.known & ~unplaced
        scatter = errors.period_scatter(self.judged.outliers.flagged)
        held = self.solver.undetermined
        doubt = _within_doubt(self.dwi, errors)
        motion = self.solver.fields.with_offsets(
            replace(self.motion, within_doubt=doubt), self.groups[-1]
        )
        return Estimate(
            fill_unpredicted(
                self.dwi, motion, known, self.model, groups=self.frames, unplaced=unplaced
            ),
            np.where(known[:, None, None], errors.covariances + errors.by_slices, np.nan),
            self.frames if len(self.frames) > 1 or isinstance(self.model, AverageModel) else None,
            unplaced if unplaced.any() else None,
            held if len(held) else None,
            scatter,
            common_motion=self.common_motion,
            removed=self.removed,
            a_radian=self.solver.fields.a_radian,
        )


def _warn_of_vibration(common: np.ndarray, in_mm: np.ndarray) -> None:
    """Warn if the head follows the gradients, by these covariances (N, 6, 6) of mm and rad."""
    farthest = float(np.sqrt(np.einsum("nkk,k->n", common, in_mm**2).max()))
    if farthest > 0:
        log.warning(
            "the head follows the direction of the gradients by about %.2f mm, more than the "
            "errors of its poses, as on a vibrating bed (or it happens to nod as the gradients "
            "change): images determine only a part of it, and standard errors of the offset "
            "between diffusion-weighted and b=0 volumes are larger",
            farthest,
        )  # fmt: skip


def _warn_of_b_values(
    not_determined: np.ndarray, covariances: np.ndarray, in_mm: np.ndarray
) -> None:
    """Warn if what follows the b-value adds as much to covariances (N, 6, 6) as they have."""
    added, before = (
        np.einsum("nkk,k->n", one, in_mm**2)[not_determined.any(axis=(1, 2))]
        for one in (not_determined, covariances)
    )
    if len(added) and added.mean() > before.mean():
        log.warning(
            "displacements of about %.2f mm that follow the b-value are not determined: b-values "
            "rise, fall or alternate in time, so that a head that moves likewise looks like the "
            "decay of the signal; standard errors are larger. Acquire them in random order",
            np.sqrt(added.mean() / 3),
        )


def _within_doubt(dwi: DWI, errors: PoseErrors) -> str | None:
    """Name volumes within which the head seems to have moved, if slice timing is unknown."""
    volumes, why = errors.contradicted, dwi.acquisition.why_untimed
    if not len(volumes) or not why:
        return None
    some, n_b0s = len(volumes) > 1, len(dwi.gradients.b0s)
    no_majority = 2 * np.isin(dwi.gradients.b0s, volumes).sum() >= n_b0s > 1
    others = f" (or others of the {n_b0s} b=0 volumes)" if no_majority else ""
    doubt = (
        f"volume{'s' if some else ''} {listed(volumes)}: slices contradict the pose of their "
        f"volume by up to {errors.contradictions_mm[volumes].max():.1f} mm; the head moved while "
        f"{'they were' if some else 'it was'} acquired{others}, or the off-resonance field "
        f"changed with its pose. Neither can be estimated, since {why}; standard errors are larger"
    )
    log.warning("motion within volumes: %s", doubt)
    return doubt


def _known(
    dwi: DWI,
    groups: Sequence[VolumeGroup],
    solutions: Sequence[Solution],
    frames: Sequence[np.ndarray],
) -> np.ndarray:
    """Whether the other volumes determine the pose of each volume, (N,)."""
    known = dwi.gradients.is_b0.copy()  # the pose of a single b=0 is the frame itself
    for group, solution in zip(groups, solutions, strict=True):
        problem = solution.problem
        leverage = np.diag(problem.model.precision(problem.gradients))
        known[group.volumes] = leverage > LEVERAGE_GUARD * max(1.0, leverage.max())
    if known[dwi.gradients.dwis].any():
        for frame in frames:
            known[frame] |= len(frame) == 1  # a frame of its own, joined by time and images
    return known

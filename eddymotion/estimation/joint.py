# SPDX-License-Identifier: Apache-2.0
"""All volumes at once.

The loop of :mod:`eddymotion.estimation.lovo` creeps: each prediction is blurred by the motion of
the others. Here one Gauss-Newton step moves all volumes together
(:mod:`eddymotion.estimation.coupled`), coarse to fine, at random points off the grid:

1. b=0 volumes and diffusion-weighted ones are two groups, each consistent within itself, and so
   is each shell that the data do not tie to the others (:mod:`eddymotion.estimation.ties`).
   :mod:`eddymotion.estimation.frames` joins them.
2. Coarse levels use a fixed covariance; they cover 20 mm and 25°. Fine levels are band-passed,
   since what a model gets wrong is smooth in space, and fit the covariance to the band.
3. Slices that lost signal are found with the leave-one-out predictions and left out of a last
   solution at the finest level.
4. Volumes that neither their prediction nor their neighbours support are tried at the pose of
   their neighbours; those that fit nowhere are left out.
5. Standard errors come from how much the solution differs between parts of the brain, and between
   parts of a volume's time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from eddymotion.data.gradients import Gradients, forms_shells
from eddymotion.data.series import DWI
from eddymotion.estimation.coupled import CoupledProblem, LostSlices
from eddymotion.estimation.estimate import Estimate, fill_unpredicted
from eddymotion.estimation.fields import (
    NO_PRIOR,
    FieldPrior,
    PoseResponse,
    UnknownFields,
    follow_poses,
    pose_regressors,
    shown_order,
    untold_covariances,
    usual_poses,
    weigh_fields,
)
from eddymotion.estimation.outlier_volumes import retry_outlier_volumes
from eddymotion.estimation.outliers import SliceOutliers, rescaled
from eddymotion.estimation.quality import assess
from eddymotion.estimation.solution import Solution
from eddymotion.estimation.ties import joined_in_time, tied_by_data, tied_volumes
from eddymotion.estimation.undetermined import (
    ENOUGH_SLICES,
    describe_directions,
    free_directions,
    undetermined_directions,
)
from eddymotion.estimation.unknowns import POSES, Block, Poses
from eddymotion.estimation.unrest import Unrest
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.axes import image_axes, phase_encoding_vector
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import (
    BLOCK_MM,
    THICKNESS_POWER,
    Level,
    band_pass,
    crop,
    fine_widths,
    head_scale,
    jittered_points,
    steepest,
)
from eddymotion.machine.parallel import Progress, one_blas_thread, parallel_map, silent
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM
from eddymotion.models import LinearModel
from eddymotion.models.base import LEVERAGE_GUARD

log = logging.getLogger(__name__)

COARSE = (Level(16.0, 3_000), Level(10.0, 4_000), Level(5.0, 8_000))
FINE = (Level(1.0, 12_000, highpass=2.5), Level(1.0, 40_000, highpass=2.5))
"""Coarse widths scale with the head, since they must cover its motion; the fine band scales with
the voxel, since that is the scale of noise and detail."""

COARSE_ITERATIONS = 8
FINE_ITERATIONS = 20

COARSE_TOLERANCE, FINE_TOLERANCE = 0.02, 0.001
"""Root-mean-square way that is left, in voxels over the points, at which a level ends."""

FEW_FOR_FIELDS = 6
"""With fewer diffusion-weighted volumes fields are not estimated."""

ENOUGH_FOR_QUADRATIC = 12
"""With fewer, ``auto`` estimates linear fields."""

ENOUGH_FOR_CUBIC, MOST_FOR_CUBIC = 20, 150
"""With fewer or more volumes, fields that follow the head stay quadratic: fewer tell too little,
and normal equations grow with the square of the terms."""

LEAST_FOUND_MM = 0.1
"""Fields of a human head count from this size on where the phase-encoding axis is not told: it is
the one of three along which what the model gets wrong looks most like fields, by 0.07 mm in a head
at rest without any."""

HALVES_FACTOR = 1.35
"""Standard errors over the scatter between halves of the brain: see
:func:`excess_covariance`. On ten simulated heads at b=1000 the errors were 0.8 to 1.5 times the
scatter, of which steps that are too short explain 1.3; where they are shorter, that counts."""

MISFIT_MM, MISFIT_FEW, MISFIT_B_POWER = 0.0125, 8.0, 0.9
"""Standard error beyond that of noise; see :func:`misfit_covariances`."""

THICK = 1.3
"""Filters that are wider along the slices by this factor tell something else than plain ones."""

CROP_MARGIN_FWHM, CROP_MARGIN_VOXELS = 2.0, 3.0
"""What is kept around the brain of a volume from the second level on: what a level's filter and
its remaining motion reach."""


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
    solver = _Solver(dwi, np.random.default_rng(seed), n_iterations, n_threads, progress)
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
            solution, volumes = Solution(problem, _of_group(motion, group)), group.volumes
            scatter = solution.scatter_of_halves()
            apart[volumes] = solution.scatter_of_periods(slicing, dwi.affine, dwi.n_slices)
            solution.release()
            by_noise[volumes] = solution.covariances()
            covariances[volumes] += by_noise[volumes] / solution.recovered**2
            factor = max(HALVES_FACTOR, 1 / solution.recovered)
            covariances[volumes] += excess_covariance(covariances[volumes], factor**2 * scatter)
            pulls = solver.pulls_of_slices(problem, group, motion)
            covariances[volumes] += pulled_by_slices(by_noise[volumes], pulls)
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
    solver: _Solver, groups: Sequence[VolumeGroup], eddy_currents: str
) -> tuple[Motion, list[CoupledProblem]]:
    """Solve from rest up to the first fine level."""
    motion = Motion.identity(len(solver.dwi))
    for level in COARSE:
        motion = solver.solve(level, groups, motion)[0]  # nothing else kept: memory
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
    solver: _Solver,
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
    solver: _Solver,
    groups: Sequence[VolumeGroup],
    problems: Sequence[CoupledProblem],
    frames: Sequence[np.ndarray],
    motion: Motion,
) -> tuple[list[np.ndarray], _Solver] | None:
    """Look for what the data do not determine, once they have been brought close to each other.

    Returns
    -------
    frames : list of index arrays
    solver : _Solver
        With which to start again; None where all is determined.
    """
    problem, of_group = problems[-1], _of_group(motion, groups[-1])
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
    solver: _Solver,
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


def _of_group(motion: Motion, group: VolumeGroup) -> Motion:
    """Motion of the volumes of a group; not all groups have fields."""
    found, eddy = motion.select(group.volumes), motion.eddy_currents
    has_some = eddy is not None and eddy.coefficients[group.volumes].any()
    return found if group.has_fields or has_some else replace(found, eddy_currents=None)


def _with_group(motion: Motion, group: VolumeGroup, found: Motion) -> Motion:
    """Put the motion of a group into that of the series."""
    eddy = motion.eddy_currents
    if eddy is not None and group.has_fields and found.eddy_currents is not None:
        coefficients = eddy.coefficients.copy()
        coefficients[group.volumes] = found.eddy_currents.coefficients
        eddy = replace(eddy, coefficients=coefficients)
    return replace(motion.updated(group.volumes, found.matrices), eddy_currents=eddy)


def misfit_covariances(dwi: DWI, volumes: np.ndarray) -> np.ndarray:
    """Covariance of what the model gets wrong alike all over the brain, (n, 6, 6), of `volumes`.

    The scatter between blocks does not show it. On simulated series the errors were 1.4 (64
    directions at b=1000) to 4 times (b=3000, 12 directions, random q-space) what the blocks say.
    The rest was about alike in millimetres for voxels of 1.2 to 4 mm, and, with ``n`` volumes,
    close to ``MISFIT_MM (1 + MISFIT_FEW / n) max(1, b / 1000)^MISFIT_B_POWER`` an axis (rotations
    at 50 mm), for a human head. b=0 volumes are predicted by a mean, which takes no directions:
    theirs is ``MISFIT_MM`` alone. Without it 25 to 75 % of their intervals held the truth.
    """
    bvals = dwi.gradients.bvals[volumes]
    scale = head_scale(dwi.mask, dwi.voxel_sizes)
    few = MISFIT_FEW / max(len(bvals), 1)
    size = MISFIT_MM * scale * np.where(dwi.gradients.is_b0[volumes], 1.0, 1 + few)
    size = size * np.maximum(1.0, bvals / 1000.0) ** MISFIT_B_POWER
    in_mm = np.array([1.0] * 3 + [ROTATION_RADIUS_MM * scale] * 3)
    return size[:, None, None] ** 2 * np.diag(1 / in_mm**2)


def excess_covariance(covariances: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """Return what the scatter between halves of the brain shows beyond covariances, (6, 6).

    Parameters
    ----------
    covariances : (N, 6, 6) array
        Of the poses of a group.
    scatter : (6,) array
        From :meth:`~eddymotion.estimation.solution.Solution.scatter_of_halves`, times the
        square of a factor: :data:`HALVES_FACTOR`, or by how much steps are too short.
    """
    variances = np.diagonal(covariances, axis1=1, axis2=2).mean(axis=0)
    return np.diag(np.maximum(np.nan_to_num(scatter - variances), 0.0))


def pulled_by_slices(covariances: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """Return what thick slices pull the poses by, beyond noise, (N, 6, 6).

    Parameters
    ----------
    covariances : (N, 6, 6) array
        Of the poses of a group, by noise alone.
    pulls : (N, 6) array
        Steps that a filter as narrow along the slices as in them asks for. They are as large as
        what it leaves to be found or larger: with voxels of 2×2×6 mm that filter lacked 7 to 25 %
        of pitch, roll and shifts through the slices, the wider one 2 to 11 %, and with 2.5×2.5×7.5
        mm and a head of sharp edges 63 and 29 %.
    """
    beyond = pulls**2 - np.einsum("nkk->nk", covariances)
    return np.maximum(np.nan_to_num(beyond), 0.0)[:, :, None] * np.eye(6)


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


@dataclass(eq=False)
class _Solver:
    """What all levels share."""

    dwi: DWI
    random: np.random.Generator
    n_iterations: int
    n_threads: int
    progress: Progress
    band: tuple[tuple[Level, float], list[Spline]] | None = None
    prior: FieldPrior = NO_PRIOR
    outliers: SliceOutliers | None = None
    stale: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    undetermined: np.ndarray = field(default_factory=lambda: np.empty((0, 6)))

    def __post_init__(self) -> None:
        self.mask = ndimage.binary_dilation(self.dwi.mask)  # the edge of the brain has contrast
        self.scale = head_scale(self.dwi.mask, self.dwi.voxel_sizes)
        self.voxel = float(np.cbrt(np.prod(self.dwi.voxel_sizes)))
        self.in_mm = np.array([1.0] * 3 + [ROTATION_RADIUS_MM * self.scale] * 3)

    def leave_out(self, outliers: SliceOutliers, moved: np.ndarray) -> None:
        """Give lost slices no weight from now on, and take their darkness out of the bands.

        Volumes that have `moved` far are filtered again, too: they are cut down to the brain.
        """
        self.outliers = outliers
        self.stale = np.union1d(np.flatnonzero(outliers.flagged.any(axis=1)), moved)

    def solve(
        self, level: Level, groups: Sequence[VolumeGroup], motion: Motion
    ) -> tuple[Motion, list[CoupledProblem]]:
        """Solve each group at a level; return the motion and the problems as they were solved."""
        fine = level.highpass is not None
        new, problems = motion, []
        for group in groups:
            start = _of_group(motion, group)
            problem = self.problem(level, group, motion)
            if self.outliers is not None:
                flagged, axis = self.outliers.flagged[group.volumes], self.outliers.slicing.axis
                problem = replace(problem, lost=LostSlices(flagged, self.dwi.affine, axis))
            if fine:
                problem = problem.with_model_fitted(start)
            found, descent = problem.solve(
                start,
                self.n_iterations if fine else min(self.n_iterations, COARSE_ITERATIONS),
                (FINE_TOLERANCE if fine else COARSE_TOLERANCE) * self.voxel,
                progress=partial(self.progress, description=f"motion of {group.name}, {level}"),
            )
            new = _with_group(new, group, found)
            log.debug("%s, %s, %d volumes: %s", group.name, level, len(start), descent)
            problems.append(problem)
        return new, problems

    def problem(self, level: Level, group: VolumeGroup, motion: Motion) -> CoupledProblem:
        """Set up the problem of a group at a level."""
        splines = self.splines(level, motion.matrices)
        own = [splines[volume] for volume in group.volumes]
        return CoupledProblem(
            own,
            self.dwi.gradients.select(group.volumes),
            group.coarse if level.highpass is None else group.fine,
            self.points(level, own, motion.matrices[group.volumes]),
            self.dwi.brain_center,
            blocks=self.blocks(group, motion),
            part_mm=BLOCK_MM * self.scale,
            leave_one_out=group.leave_one_out,
            n_threads=self.n_threads,
        )

    def blocks(
        self, group: VolumeGroup, motion: Motion, design: np.ndarray | None = None
    ) -> list[Block]:
        """Return what is solved for in a group: poses, and fields where the motion has some."""
        free = free_directions(self.undetermined, self.in_mm) if len(self.undetermined) else None
        poses, eddy = Poses(self.dwi.brain_center, free), motion.eddy_currents
        if eddy is None or not group.has_fields:
            return [poses]
        gradients, prior = self.dwi.gradients.select(group.volumes), self.prior
        n_terms = eddy.coefficients.shape[1]
        known = prior.of_volumes(group.volumes)
        return [poses, UnknownFields(gradients, n_terms, eddy.center, known, design)]

    def pulls_of_slices(
        self, problem: CoupledProblem, group: VolumeGroup, motion: Motion
    ) -> np.ndarray:
        """Find the way that a filter as narrow along thick slices as in them asks for, (n, 6)."""
        wide, plain = (fine_widths(self.dwi.voxel_sizes, p) for p in (THICKNESS_POWER, 0.0))
        if wide.max() < THICK * plain.max():
            return np.zeros((len(group.volumes), 6))
        splines = self.splines(FINE[-1], motion.matrices, thickness_power=0.0)
        narrow = replace(problem, splines=[splines[volume] for volume in group.volumes])
        found = Solution(narrow, _of_group(motion, group))
        if found.system is None:
            return np.full((len(group.volumes), 6), np.nan)
        return found.system.step(POSES) / found.recovered

    def phase_encoding_axis(self, group: VolumeGroup, motion: Motion) -> int:
        """Find the image axis along which linear fields would lower the cost most."""
        state = self.random.bit_generator.state  # the result is that of an axis that was given
        problem = self.problem(COARSE[-1], group, motion)
        self.random.bit_generator.state = state
        gains = []
        for pe in image_axes(self.dwi.affine).T:
            eddy = EddyCurrents.none(len(self.dwi), "linear", pe, self.dwi.center)
            with_field = replace(motion, eddy_currents=eddy)
            shared = self.blocks(group, with_field, design=problem.gradients.qvecs)
            system = replace(problem, blocks=shared).evaluate(_of_group(with_field, group))
            gains.append(0.0 if system is None else system.gain())
        log.debug("gain of fields along i, j, k: %.3g, %.3g, %.3g", *gains)
        return int(np.argmax(gains))

    def weigh(
        self,
        motion: Motion,
        problem: CoupledProblem,
        group: VolumeGroup,
        *,
        by_evidence: bool,
        follow: bool = False,
    ) -> Motion:
        """Learn what the fields have in common, and leave out those that the data do not show.

        Those that follow the head stay; with `follow` it is known that they do.
        """
        found = _of_group(motion, group)
        eddy, system = motion.eddy_currents, problem.evaluate(found)
        assert eddy is not None
        assert found.eddy_currents is not None
        if system is None:
            log.warning("eddy currents: too few points lie inside the volumes; no fields")
            return replace(motion, eddy_currents=None)
        poses = self.poses_followed(motion, group, known=follow)
        own = None if poses is None else poses[group.volumes]
        evidence, prior = weigh_fields(found.eddy_currents, problem.gradients, system, own)
        for one in evidence:
            log.info("eddy currents: %s", one)
        axis_is_known = self.dwi.acquisition.common_phase_encoding is not None
        least_mm = 0.0 if axis_is_known else LEAST_FOUND_MM * self.scale
        shown = shown_order(evidence, least_mm)
        order = shown if by_evidence and poses is None else eddy.order
        log.info("eddy currents: %s%s", order, ", by evidence" if by_evidence else "")
        scale = FINE[1].n_points / FINE[0].n_points
        self.prior = replace(prior.of_order(order).scaled(scale), poses=poses)
        eddy = eddy.of_order(order)
        if poses is not None:
            eddy = self.with_pose_response(eddy, poses, group)
        return replace(motion, eddy_currents=None if order == "none" else eddy)

    def poses_followed(
        self, motion: Motion, group: VolumeGroup, *, known: bool = False
    ) -> np.ndarray | None:
        """Return the poses of all volumes (N, 5) if the fields follow them, or are known to."""
        found = self.response(motion, group)
        if found is None:
            return None
        log.info("off-resonance: %s", found)
        return self.poses(motion) if known or found.is_there else None

    def response(
        self, motion: Motion, group: VolumeGroup, terms: slice = slice(None)
    ) -> PoseResponse | None:
        """Measure how some terms of the fields follow the poses; None where nothing tells."""
        assert motion.eddy_currents is not None
        if not len(self.dwi.gradients.b0s):
            return None
        poses = self.poses(motion)
        volumes = group.volumes[usual_poses(poses[group.volumes])]
        coefficients = motion.eddy_currents.coefficients[volumes, terms]
        return follow_poses(coefficients, self.dwi.gradients.select(volumes), poses[volumes])

    def poses(self, motion: Motion) -> np.ndarray:
        """Return the poses of all volumes against the first b=0, as fields follow them: (N, 5)."""
        first = int(self.dwi.gradients.b0s[0])
        return pose_regressors(motion.matrices, self.dwi.brain_center, first)

    def untold(self, motion: Motion, group: VolumeGroup) -> np.ndarray:
        """Covariance of what fields that follow the head leave open, (N, 6, 6); zero without."""
        poses, eddy, volumes = self.prior.poses, motion.eddy_currents, group.volumes
        nothing = np.zeros((len(motion), 6, 6))
        if poses is None or eddy is None:
            return nothing
        own = self.dwi.gradients.select(volumes)
        found = follow_poses(eddy.coefficients[volumes], own, poses[volumes])
        brain = apply_affine(self.dwi.affine, np.argwhere(self.dwi.mask)[::7])
        return nothing if found is None else untold_covariances(eddy, found.response, poses, brain)

    def with_pose_response(
        self, eddy: EddyCurrents, poses: np.ndarray, group: VolumeGroup
    ) -> EddyCurrents:
        """Give all volumes outside the group the fields that their poses ask for."""
        volumes = group.volumes
        own = self.dwi.gradients.select(volumes)
        found = follow_poses(eddy.coefficients[volumes], own, poses[volumes])
        assert found is not None
        coefficients = poses @ found.response
        coefficients[volumes] = self.prior.of_volumes(volumes).centred(
            eddy.coefficients[volumes], own
        )
        return replace(eddy, coefficients=coefficients)

    def splines(
        self, level: Level, matrices: np.ndarray, *, thickness_power: float = THICKNESS_POWER
    ) -> list[Spline]:
        """Band-pass all volumes, unless it is the band of the level before."""
        wanted = replace(level, n_points=COARSE[0].n_points), thickness_power
        if self.band is None or self.band[0] != wanted:
            self.band = None  # one at a time: memory
            self.band = (
                wanted,
                self.filtered(level, range(len(self.dwi)), matrices, thickness_power),
            )
        elif len(self.stale):
            again = self.filtered(level, self.stale, matrices, thickness_power)
            for volume, spline in zip(self.stale, again, strict=True):
                self.band[1][volume] = spline
        self.stale = np.empty(0, int)
        return self.band[1]

    def filtered(
        self, level: Level, volumes: Iterable[int], matrices: np.ndarray, thickness_power: float
    ) -> list[Spline]:
        """Band-pass some volumes."""
        brain = apply_affine(self.dwi.affine, np.argwhere(self.mask)[::7])
        unit = fine_widths(self.dwi.voxel_sizes)
        width = unit if level.highpass is not None else self.scale
        margin = CROP_MARGIN_FWHM * level.fwhm * width + CROP_MARGIN_VOXELS * self.voxel

        def one(volume: int) -> Spline:
            image = self.dwi.volume_with_missing(volume)
            if self.outliers is not None:
                image = rescaled(image, self.outliers, volume)
            if level is not COARSE[0]:
                image = crop(image, apply_affine(matrices[volume], brain), margin)
            return Spline.of(band_pass(image, level, self.scale, thickness_power))

        return parallel_map(
            one, volumes, n_threads=self.n_threads, progress=self.progress,
            description=f"filtering for {level}",
        )  # fmt: skip

    def points(self, level: Level, splines: Sequence[Spline], matrices: np.ndarray) -> np.ndarray:
        """Draw random points of the brain; at fine levels more where the images have edges."""
        affine = self.dwi.affine
        if level.highpass is None:
            return jittered_points(self.mask, affine, level.n_points, self.random)
        candidates = jittered_points(self.mask, affine, self.mask.sum(), self.random)
        every = max(1, len(splines) // 8)
        total = np.zeros((len(candidates), 3), np.float32)
        for spline, matrix in zip(splines[::every], matrices[::every], strict=True):
            _, slopes = spline.sample_with_gradient(candidates, matrix)
            total += np.nan_to_num(slopes)
        steepness = np.linalg.norm(total, axis=1).astype(float)
        return candidates[steepest(steepness, level.n_points, self.random)]

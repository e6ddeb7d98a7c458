# SPDX-License-Identifier: Apache-2.0
"""All groups of volumes at one level of resolution."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import CoupledProblem, LostSlices
from eddymotion.estimation.equations.search import places_by_signal, search, search_level
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.equations.undetermined import free_directions
from eddymotion.estimation.equations.unknowns import POSES, Block, Poses
from eddymotion.estimation.fields import (
    NO_PRIOR,
    FieldPrior,
    PoseResponse,
    UnknownFields,
    follow_poses,
    pose_regressors,
    shown_order,
    unseen_covariances,
    untold_covariances,
    usual_poses,
    weigh_fields,
    with_offsets_of_poses,
)
from eddymotion.estimation.frames.anchors import LEAST_CORE, NONE_PARTED, Anchors, Parted
from eddymotion.estimation.outlier_volumes import far_from_neighbours
from eddymotion.estimation.outliers import SliceOutliers, rescaled
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.axes import image_axes
from eddymotion.images.compact import CompactSpline
from eddymotion.images.grid import transformed
from eddymotion.images.image import Continuous, Spline
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
from eddymotion.machine.memory import give_back_memory
from eddymotion.machine.parallel import Progress, parallel_iterate, parallel_map
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid, rms_displacement, twist_millimetres

log = logging.getLogger(__name__)

COARSE = (Level(16.0, 3_000), Level(10.0, 4_000), Level(5.0, 8_000))
FINE = (Level(1.0, 12_000, highpass=2.5), Level(1.0, 40_000, highpass=2.5))
"""Coarse widths scale with the head, since they must cover its motion; the fine band scales with
the voxel, since that is the scale of noise and detail."""

COARSE_ITERATIONS = 8
FINE_ITERATIONS = 20

COARSE_TOLERANCE, FINE_TOLERANCE = 0.02, 0.001
"""Root-mean-square way that is left over the points, at which a level ends: relative to the width
of a coarse filter, of which the next level needs no more than to begin near; in voxels at fine
levels."""

NEGLIGIBLE = {FINE[0]: 0.25, FINE[1]: 0.1}
"""The same, relative to what noise displaces the volumes by at these points: of the first it is
twice as much, and the last level goes on from there."""

CHANCE_MM, MOST_POINTS, MOST_VALUES = 0.03, 120_000, 8_000_000
"""Where noise displaces the volumes at the first fine level by more, in a human head (root mean
square), the last level has more points, in proportion to its square: up to so many, to half of the
voxels, and to so many values of all volumes. Points left out are signal that is wasted."""

STEADY = 0.1
"""Share of the width of a filter up to which volumes move without another normal matrix."""

VOLUMES_FOR_AXIS = 100
"""At most so many volumes tell along which axis fields displace."""

LEAST_FOUND_MM = 0.1
"""Fields of a human head count from this size on where the phase-encoding axis is not told: it is
the one of three along which what the model gets wrong looks most like fields, by 0.07 mm in a head
at rest without any."""

THICK = 1.3
"""Filters that are wider along the slices by this factor tell something else than plain ones."""

MAX_SWEEPS, AT_HOME_MM = 6, 4.0
"""Times that volumes far from their neighbours are sought, until none moves so far, in a human
head (root mean square)."""

MOST_CANDIDATES = 320_000
"""Of points, among which those of fine levels are chosen; one a voxel of the brain otherwise."""

SOME_OF_BRAIN = 7
"""Every so many voxels of the brain show what fields displace it by."""

WHOLE = 0.5
"""Where no larger share of a group agrees with b=0 on where the others are, coarse levels have led
it astray; alone, two of three volumes of a scattered head find b=0 within some millimetres."""

MAX_REUNIONS = 6
"""Times that volumes which b=0 finds elsewhere are tried again."""

CROP_MARGIN_FWHM, CROP_MARGIN_VOXELS = 2.0, 3
"""What is kept around the brain of a volume from the second level on: what a level's filter and
its remaining motion reach."""


def group_motion(motion: Motion, group: VolumeGroup) -> Motion:
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


@dataclass(eq=False)
class JointSolver:
    """What all levels share."""

    dwi: DWI
    random: np.random.Generator
    n_iterations: int
    n_threads: int
    progress: Progress
    band: tuple[tuple[Level, float], list[Continuous]] | None = None
    prior: FieldPrior = NO_PRIOR
    outliers: SliceOutliers | None = None
    stale: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    undetermined: np.ndarray = field(default_factory=lambda: np.empty((0, 6)))
    parted: Parted = NONE_PARTED
    suspected: tuple[EddyCurrents, PoseResponse] | None = None
    chance: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.mask = scipy.ndimage.binary_dilation(
            self.dwi.mask
        )  # the edge of the brain has contrast
        surface = self.mask & ~scipy.ndimage.binary_erosion(self.mask)
        self.surface = apply_affine(self.dwi.affine, np.argwhere(surface))
        self.scale = head_scale(self.dwi.mask, self.dwi.voxel_sizes)
        self.voxel = float(np.cbrt(np.prod(self.dwi.voxel_sizes)))
        self.in_mm = twist_millimetres(self.scale)

    def leave_out(self, outliers: SliceOutliers, moved: np.ndarray) -> None:
        """Give lost slices no weight from now on, and take their darkness out of the bands.

        Volumes that have `moved` far are filtered again, too: they are cut down to the brain.
        """
        self.outliers = outliers
        self.stale = np.union1d(np.flatnonzero(outliers.flagged.any(axis=1)), moved)

    def solve(
        self, level: Level, groups: Sequence[VolumeGroup], motion: Motion
    ) -> tuple[Motion, list[Solution]]:
        """Solve each group at a level; return the motion and the solutions of the groups."""
        fine = level.highpass is not None
        new, solutions = motion, []
        for group in groups:
            start = group_motion(motion, group)
            problem = self.problem(level, group, motion)
            if self.outliers is not None:
                flagged, axis = self.outliers.flagged[group.volumes], self.outliers.slicing.axis
                problem = replace(problem, lost=LostSlices(flagged, self.dwi.affine, axis))
            if fine:
                problem = problem.with_model_fitted(start)
            found, descent, seen = problem.solve(
                start,
                self.n_iterations if fine else min(self.n_iterations, COARSE_ITERATIONS),
                FINE_TOLERANCE * self.voxel if fine else COARSE_TOLERANCE * self.width(level),
                NEGLIGIBLE.get(level, 0.0),
                progress=partial(self.progress, description=f"motion of {group.name}, {level}"),
            )
            # fields that a prior holds are known for as many points as `weigh` reckoned with
            is_free = motion.eddy_currents is None or self.prior is NO_PRIOR
            if level == FINE[0] and is_free and seen is not None:
                self.chance[group.name] = problem.chance(found, seen)
            new = _with_group(new, group, found)
            log.debug("%s, %s, %d volumes: %s", group.name, level, len(start), descent)
            solutions.append(Solution.of(problem, found, seen))
        return new, solutions

    def seek(self, groups: Sequence[VolumeGroup], motion: Motion) -> Motion:
        """Seek volumes that lie far from their neighbours in time, until all stay there."""
        level = search_level(self.scale, self.voxel)
        for group in groups:
            if not len(self.to_seek(group, motion)):
                continue
            anchors = None
            if len(self.dwi.gradients.b0s):
                anchors = Anchors.of(self.dwi, group.volumes, self.n_threads)
                motion = self.started_anew(group, motion, anchors)
            for _ in range(MAX_SWEEPS):
                far = self.to_seek(group, motion)
                if not len(far):
                    break
                found = group_motion(motion, group)
                problem = self.problem(level, group, motion, whole=group.volumes[far])
                places = places_by_signal(self.dwi, group.volumes, found)
                found, ways = search(problem.with_model_fitted(found), found, far, places)
                log.debug("%s, sought %d: moved by %s mm", group.name, len(far), ways[far])
                self.stale = group.volumes[far]
                motion = self.solve(level, [group], _with_group(motion, group, found))[0]
                if ways.max() < AT_HOME_MM * self.scale:
                    break
            if len(far) and anchors is not None:
                motion = self.reunite(group, motion, anchors)
        return motion

    def started_anew(self, group: VolumeGroup, motion: Motion, anchors: Anchors) -> Motion:
        """Start at what b=0 finds of each volume alone, where coarse levels left no whole."""
        found = group_motion(motion, group)
        core, _ = anchors.from_poses(found, self.n_threads).core(found)
        if core.mean() > WHOLE:
            return motion
        log.debug("%s, %d of %d agree with b=0: from there", group.name, core.sum(), len(core))
        found = found.updated(np.arange(len(found)), anchors.matrices)
        self.stale = group.volumes
        level = search_level(self.scale, self.voxel)
        return self.solve(level, [group], _with_group(motion, group, found))[0]

    def reunite(self, group: VolumeGroup, motion: Motion, anchors: Anchors) -> Motion:
        """Try volumes again that parted from the others as a whole."""
        level = search_level(self.scale, self.voxel)
        for _ in range(MAX_REUNIONS):
            found = group_motion(motion, group)
            anchors = anchors.from_poses(found, self.n_threads)
            core, offset = anchors.core(found)
            outside = np.flatnonzero(~core)
            if not len(outside) or core.sum() < LEAST_CORE:
                break
            problem = self.problem(level, group, motion, whole=group.volumes[outside])
            by_b0 = anchors.matrices[outside] @ np.linalg.inv(offset)
            elsewhere = found.updated(outside, by_b0)
            before = found.matrices
            found, _ = search(
                problem.with_model_fitted(elsewhere),
                elsewhere,
                outside,
                places_by_signal(self.dwi, group.volumes, elsewhere),
                known=np.flatnonzero(core),
                starts=before,
            )
            ways = rms_displacement(found.matrices, before, self.dwi.brain_center)
            log.debug(
                "%s, against b=0 %d: moved by %s mm", group.name, len(outside), ways[outside]
            )
            self.stale = group.volumes[outside]
            motion = self.solve(level, [group], _with_group(motion, group, found))[0]
            if ways.max() < AT_HOME_MM * self.scale:
                break
        self.parted = self.parted.updated(anchors, group_motion(motion, group))
        return motion

    def to_seek(self, group: VolumeGroup, motion: Motion) -> np.ndarray:
        """Return which of the volumes of a group lie so far from their neighbours, (K,)."""
        if len(self.undetermined) or not group.can_be_sought:
            return np.empty(0, int)
        return far_from_neighbours(group_motion(motion, group), self.dwi.brain_center)[0]

    def problem(
        self,
        level: Level,
        group: VolumeGroup,
        motion: Motion,
        *,
        whole: Sequence[int] | np.ndarray = (),
    ) -> CoupledProblem:
        """Set up the problem of a group at a level, some volumes not cut down to the brain."""
        own = self.splines_of(group, level, motion.matrices, THICKNESS_POWER)
        uncut = self.filtered(level, whole, motion.matrices, THICKNESS_POWER, cut=False)
        for volume, spline in zip(whole, uncut, strict=True):
            own[int(np.flatnonzero(group.volumes == volume)[0])] = spline
        n_points = self.enough_points(group) if level == FINE[-1] else level.n_points
        level = replace(group.at(level), n_points=n_points)
        return CoupledProblem(
            own,
            self.dwi.gradients.select(group.volumes),
            group.coarse if level.highpass is None else group.fine,
            self.points(level, own, motion.matrices[group.volumes]),
            self.dwi.brain_center,
            blocks=self.blocks(group, motion),
            part_mm=BLOCK_MM * self.scale,
            leave_one_out=group.leave_one_out,
            steady_mm=STEADY * self.width(level),
            n_threads=self.n_threads,
        )

    def enough_points(self, group: VolumeGroup) -> int:
        """Return how many points the last level has: more where noise displaces volumes far."""
        fewest = FINE[-1].n_points
        excess = self.chance.get(group.name, 0.0) / (CHANCE_MM * self.scale)
        most = min(MOST_POINTS, int(self.mask.sum()) // 2, MOST_VALUES // len(group.volumes))
        return max(fewest, min(int(fewest * excess**2), most))

    def width(self, level: Level) -> float:
        """Return the width of the filter of a level, mm."""
        return level.fwhm * (self.scale if level.highpass is None else self.voxel)

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
        narrow = replace(problem, splines=self.splines_of(group, FINE[-1], motion.matrices, 0.0))
        found = Solution(narrow, group_motion(motion, group))
        if found.system is None:
            return np.full((len(group.volumes), 6), np.nan)
        return found.system.step(POSES) / found.recovered

    def gains_of_fields(self, group: VolumeGroup, motion: Motion) -> np.ndarray:
        """By how much linear fields would lower the cost along each image axis, (3,)."""
        every = -(-len(group.volumes) // VOLUMES_FOR_AXIS)
        group = replace(group, volumes=group.volumes[::every])
        state = self.random.bit_generator.state  # the result is that of an axis that was given
        problem = self.problem(COARSE[-1], group, motion)
        self.random.bit_generator.state = state
        seen = problem.look(group_motion(motion, group))
        if seen is None:
            return np.zeros(3)
        gains = []
        for pe in image_axes(self.dwi.affine).T:
            eddy = EddyCurrents.none(len(self.dwi), "linear", pe, self.dwi.center)
            with_field = replace(motion, eddy_currents=eddy)
            shared = self.blocks(group, with_field, design=problem.gradients.qvecs)
            there = seen.under(group_motion(with_field, group))
            gains.append(replace(problem, blocks=shared).equations(there, seen.weights).gain())
        log.debug("gain of fields along i, j, k: %.3g, %.3g, %.3g", *gains)
        return np.array(gains)

    def weigh(
        self,
        motion: Motion,
        solution: Solution,
        group: VolumeGroup,
        *,
        by_evidence: bool,
        follow: bool = False,
    ) -> Motion:
        """Learn what the fields have in common, and leave out those that the data do not show.

        Those that follow the head stay; with `follow` it is known that they do.
        """
        found = group_motion(motion, group)
        eddy, system = motion.eddy_currents, solution.system
        assert eddy is not None
        assert found.eddy_currents is not None
        if system is None:
            log.warning("eddy currents: too few points lie inside the volumes; no fields")
            return replace(motion, eddy_currents=None)
        poses = self.poses_followed(motion, group, known=follow)
        own = None if poses is None else poses[group.volumes]
        evidence, prior = weigh_fields(
            found.eddy_currents, solution.problem.gradients, system, own
        )
        for one in evidence:
            log.info("eddy currents: %s", one)
        axis_is_known = self.dwi.acquisition.common_phase_encoding is not None
        least_mm = 0.0 if axis_is_known else LEAST_FOUND_MM * self.scale
        shown = shown_order(evidence, least_mm)
        order = shown if by_evidence and poses is None else eddy.order
        log.info("eddy currents: %s%s", order, ", by evidence" if by_evidence else "")
        scale = self.enough_points(group) / FINE[0].n_points
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
        if known or found.is_there:
            return self.poses(motion)
        if found.is_suspected and motion.eddy_currents is not None:
            self.suspected = motion.eddy_currents, found
        return None

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
        """Covariance of what fields that follow the head leave open, (N, 6, 6); zero without.

        Or of what they do, where they seem to but are left out.
        """
        poses, eddy, volumes = self.prior.poses, motion.eddy_currents, group.volumes
        nothing = np.zeros((len(motion), 6, 6))
        brain = apply_affine(self.dwi.affine, np.argwhere(self.dwi.mask)[::SOME_OF_BRAIN])
        if poses is None or eddy is None:
            if self.suspected is None:
                return nothing
            eddy, seen = self.suspected
            first = motion.matrices[self.dwi.gradients.b0s[0]]
            moved = log_rigid(np.linalg.inv(first) @ motion.matrices, self.dwi.brain_center)
            return unseen_covariances(eddy, seen.response, self.poses(motion), moved, brain)
        own = self.dwi.gradients.select(volumes)
        found = follow_poses(eddy.coefficients[volumes], own, poses[volumes])
        return nothing if found is None else untold_covariances(eddy, found.response, poses, brain)

    def with_offsets_of_poses(self, motion: Motion, group: VolumeGroup) -> Motion:
        """Tell what of the translations is of fields that follow the head, where these do."""
        poses, eddy, volumes = self.prior.poses, motion.eddy_currents, group.volumes
        if poses is None or eddy is None:
            return motion
        own = self.dwi.gradients.select(volumes)
        found = follow_poses(eddy.coefficients[volumes], own, poses[volumes])
        if found is None:
            return motion
        brain = apply_affine(self.dwi.affine, np.argwhere(self.dwi.mask)[::SOME_OF_BRAIN])
        eddy = with_offsets_of_poses(eddy, found.response, poses, motion.matrices, brain)
        return replace(motion, eddy_currents=eddy)

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

    def splines_of(
        self, group: VolumeGroup, level: Level, matrices: np.ndarray, thickness_power: float
    ) -> list[Continuous]:
        """Band-pass the volumes of a group for a level, with the filters that serve it."""
        own = group.at(level)
        if own != level:
            return self.filtered(own, group.volumes, matrices, thickness_power)
        splines = self.splines(level, matrices, thickness_power=thickness_power)
        return [splines[volume] for volume in group.volumes]

    def splines(
        self, level: Level, matrices: np.ndarray, *, thickness_power: float = THICKNESS_POWER
    ) -> list[Continuous]:
        """Band-pass all volumes, unless it is the band of the level before."""
        wanted = replace(level, n_points=COARSE[0].n_points), thickness_power
        if self.band is None or self.band[0] != wanted:
            self.band = None  # one at a time: memory
            give_back_memory()
            self.band = (
                wanted,
                self.filtered(level, range(len(self.dwi)), matrices, thickness_power),
            )
            give_back_memory()  # of filtering
        elif len(self.stale):
            again = self.filtered(level, self.stale, matrices, thickness_power)
            for volume, spline in zip(self.stale, again, strict=True):
                self.band[1][volume] = spline
        self.stale = np.empty(0, int)
        return self.band[1]

    def filtered(
        self,
        level: Level,
        volumes: Iterable[int],
        matrices: np.ndarray,
        thickness_power: float,
        *,
        cut: bool = True,
    ) -> list[Continuous]:
        """Band-pass some volumes, cut down to where the brain is and the filter reaches.

        Of fine levels only the brain is kept, and what it reaches if it moves a little.
        """
        unit = fine_widths(self.dwi.voxel_sizes)
        width = unit if level.highpass is not None else self.scale
        margin = CROP_MARGIN_FWHM * level.fwhm * width + CROP_MARGIN_VOXELS * self.voxel

        def one(volume: int) -> Continuous:
            image = self.dwi.volume_with_missing(volume)
            if self.outliers is not None:
                image = rescaled(image, self.outliers, volume)
            brain = transformed(matrices[volume], self.surface)
            if cut and level is not COARSE[0]:
                image = crop(image, brain, margin)
            shown = band_pass(image, level, self.scale, thickness_power)
            if level.highpass is None:
                return Spline.of(shown)
            spline = Spline.of_filtered(shown)
            return CompactSpline.around(brain, spline, CROP_MARGIN_VOXELS) if cut else spline

        return parallel_map(
            one, volumes, n_threads=self.n_threads, progress=self.progress,
            description=f"filtering for {level}",
        )  # fmt: skip

    def points(
        self, level: Level, splines: Sequence[Continuous], matrices: np.ndarray
    ) -> np.ndarray:
        """Draw random points of the brain; at fine levels more where the images have edges.

        Each level draws its own: with the same points at both fine levels real series were a sixth
        worse (docs/decisions/0028).
        """
        if level.highpass is None:
            return jittered_points(self.mask, self.dwi.affine, level.n_points, self.random)
        n_points = min(int(self.mask.sum()), MOST_CANDIDATES)
        candidates = jittered_points(self.mask, self.dwi.affine, n_points, self.random)
        total = np.zeros((len(candidates), 3), np.float32, order="F")  # as slopes are

        def slopes(volume: int) -> np.ndarray:
            return splines[volume].sample_with_gradient(candidates, matrices[volume])[1]

        some = range(0, len(splines), max(1, len(splines) // 8))
        for one in parallel_iterate(slopes, some, n_threads=self.n_threads):
            total += np.nan_to_num(one, copy=False)
        steepness = np.linalg.norm(total, axis=1).astype(float)
        return candidates[steepest(steepness, level.n_points, self.random)]

# SPDX-License-Identifier: Apache-2.0
"""The course of the head, coarse to fine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy

from eddymotion.data.checks.fat import fat_over_brain
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import POINTS_FOR_MODEL
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.estimation.within_volumes.descent import CourseStepping, FoundCourse, solve_course
from eddymotion.estimation.within_volumes.equations import CourseProblem, Member
from eddymotion.estimation.within_volumes.increments import Increments
from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.estimation.within_volumes.slice_order import OrderEvidence, weigh_orders
from eddymotion.images.image import Image
from eddymotion.images.pyramid import (
    BLOCK_MM,
    difference_of_gaussians,
    head_scale,
    jittered_points,
    low_pass,
    steepest_points,
)
from eddymotion.images.stack import SliceStack
from eddymotion.machine.parallel import Compute, parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, exp_rigid, log_rigid

log = logging.getLogger(__name__)

N_KNOTS, N_MIDDLE_KNOTS, N_COARSE_KNOTS = 18, 8, 4
"""Knots of a volume in which the head moved: a jump takes at least the time between two knots."""

ASKED = 72
"""Largest number of volumes that determine the order of the slices: more only add certainty."""

MOVED_BY = 1.2
"""Least motion within a volume, in standard errors, for which its knots are kept. The prior holds
volumes at rest still: in simulated series of three heads they moved by up to 1.1, those with 0.1
mm of motion by 1.3, those with 0.2 mm by 1.9 and more."""

MANY_MOVED, CLEARLY_MOVED_BY = 0.5, 2.0
"""If a larger share of the diffusion-weighted volumes moved, by this many standard errors, none is
taken to be at rest: the few that are would hold the slices of all others in the frame of their own
small motion. With eddy currents and lost slices, volumes at rest moved by up to 1.9."""


@dataclass(frozen=True)
class StackLevel:
    """One step of the pyramid, in the planes of the slices.

    Parameters
    ----------
    fwhm : float
        Of the smoothing Gaussian, voxels.
    highpass : float, optional
        FWHM of the Gaussian whose smoothed image is subtracted, voxels.
    n_points : int
    n_knots : int
        Of a volume in which the head moved, at most.
    stepping : CourseStepping
        Lengths in voxels.
    """

    fwhm: float
    highpass: float | None
    n_points: int
    n_knots: int
    stepping: CourseStepping

    def filtered(self, image: Image, axis: int) -> Image:
        """Filter an image."""
        voxel = np.full(3, np.sqrt(np.delete(image.voxel_sizes, axis).prod()))
        voxel[axis] = 0.0
        if self.highpass is None:
            return low_pass(image, self.fwhm * voxel)
        return difference_of_gaussians(image, self.fwhm * voxel, self.highpass * voxel)


LEVELS = (
    StackLevel(3.0, None, 8_000, N_COARSE_KNOTS, CourseStepping(4, 0.02, 4 / 3, 0.1)),
    StackLevel(1.0, 2.5, 12_000, N_MIDDLE_KNOTS, CourseStepping(4, 0.002, 1.0, 0.01)),
    StackLevel(1.0, 2.5, 30_000, N_KNOTS, CourseStepping(5, 0.02, 1.0, 0.01)),
)


@dataclass(eq=False)
class CourseSolver:
    """Solves for the course, level by level.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
        Of the volumes, in one frame.
    groups : sequence of VolumeGroup
    moving : (N,) bool array
        Volumes within which the head moved.
    lost : (N, Z) bool array
        Slices without signal.
    n_knots : int, optional
        Knots of a volume in which the head moved; as many as serve when not given.
    compute : Compute
    """

    dwi: DWI
    motion: Motion
    groups: Sequence[VolumeGroup]
    moving: np.ndarray
    lost: np.ndarray
    n_knots: int | None
    compute: Compute = field(default_factory=Compute)
    filtered: tuple[tuple[float, float | None], list[SliceStack]] | None = field(
        default=None, init=False
    )

    def __post_init__(self) -> None:
        dwi = self.dwi
        self.random = np.random.default_rng(self.compute.seed)
        self.slicing = dwi.acquisition.slicing
        self.mask = scipy.ndimage.binary_dilation(dwi.mask)
        self.reliable = self.mask & ~fat_over_brain(dwi)
        self.scale = head_scale(dwi.mask, dwi.voxel_sizes)
        self.voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
        human = 1 / self.scale  # the prior's lengths are those of a human head
        self.in_mm = np.array([human] * 3 + [ROTATION_RADIUS_MM] * 3)
        self.follows = np.diff(dwi.acquisition.runs) == 0

    def solve(self) -> tuple[Knots, FoundCourse] | None:
        """Solve all levels; None if the head turns out to have been at rest.

        Returns
        -------
        knots : Knots
        found : FoundCourse
        """
        knots, twists = self.at_rest()
        found, scale = None, None
        for level in self.compute.progress(LEVELS, "motion within volumes", len(LEVELS)):
            before = knots
            knots = Knots.between(self.slicing, self.knots_at(level), self.moving)
            twists = knots.taken_over(twists, before)
            increments = Increments.of(knots, self.follows, self.in_mm)
            if scale is not None:
                scale = scale.copy()
                scale[0] *= np.sqrt((before.n_knots - 1) / (knots.n_knots - 1))
                increments = replace(increments, scale=scale)
            found = self.solve_at(level, knots, twists, increments)
            log.debug("motion within volumes, %d points: %s", level.n_points, found)
            twists, scale = found.twists, found.increments.scale
            if self.n_knots is None and level is LEVELS[1]:
                self.drop_knots_at_rest(motion_over_error(knots, found, self.in_mm))
                if not self.moving.any():
                    return None
        assert found is not None
        return knots, found

    def solve_at(
        self, level: StackLevel, knots: Knots, twists: np.ndarray, increments: Increments
    ) -> FoundCourse:
        """Solve a level, from the twists (K, 6) of its knots."""
        problem = self.problem(level, knots, self.stacks(level), twists)
        stepping = replace(
            level.stepping,
            tolerance=level.stepping.tolerance * self.voxel,
            longest=level.stepping.longest * self.voxel,
        )
        return solve_course(problem, twists, increments, stepping)

    def drop_knots_at_rest(self, strayed: np.ndarray) -> None:
        """Keep knots only where motion (N,; standard errors) is clear, unless most moved."""
        clearly = strayed > CLEARLY_MOVED_BY
        if clearly[self.dwi.gradients.dwis].mean() <= MANY_MOVED:
            self.moving = self.moving & (strayed > MOVED_BY)
            n_moved = self.moving.sum()
            log.info("motion within volumes: in %d of them by more than errors", n_moved)

    def knots_at(self, level: StackLevel) -> int:
        """Return the knots at a level of a volume in which the head moved."""
        finest = self.n_knots or (N_MIDDLE_KNOTS if self.moving.all() else N_KNOTS)
        return finest if level is LEVELS[-1] else min(level.n_knots, finest)

    def at_rest(self) -> tuple[Knots, np.ndarray]:
        """Return one knot a volume, and its twists (N, 6)."""
        knots = Knots.between(self.slicing, 2, np.zeros(len(self.dwi), bool))
        return knots, log_rigid(self.motion.head, self.dwi.brain_center)

    def evidence_of_order(self) -> OrderEvidence:
        """Compare orders of acquisition of the slices, in the diffusion-weighted volumes."""
        state = self.random.bit_generator.state  # so that the course does not depend on this test
        knots, twists = self.at_rest()
        is_b0 = self.dwi.gradients.is_b0
        weighted = [group for group in self.groups if not is_b0[group.volumes].all()]
        group = max(weighted, key=lambda one: len(one.volumes))
        group = replace(group, volumes=self.chosen_volumes(group.volumes))
        problem = self.problem(LEVELS[0], knots, self.stacks(LEVELS[0]), twists, [group])
        self.random.bit_generator.state = state
        (member,) = problem.members
        pulls = problem.pulls_of_slices(member, twists, self.in_mm)
        return weigh_orders(pulls, self.slicing, self.compute.n_threads)

    def chosen_volumes(self, volumes: np.ndarray) -> np.ndarray:
        """Choose volumes to determine the order, half of them with motion if there are enough."""
        moved = self.moving[volumes]
        n_moved = min(moved.sum(), max(ASKED // 2, ASKED - (~moved).sum()))
        chosen = [volumes[moved][_evenly(moved.sum(), n_moved)]]
        chosen.append(volumes[~moved][_evenly((~moved).sum(), ASKED - n_moved)])
        return np.sort(np.concatenate(chosen))

    def stacks(self, level: StackLevel) -> list[SliceStack]:
        """Filter all volumes in the planes of their slices, unless they are."""
        filters = level.fwhm, level.highpass
        if self.filtered is None or self.filtered[0] != filters:
            self.filtered = None  # one at a time: memory
            self.filtered = filters, self._filter(level)
        return self.filtered[1]

    def _filter(self, level: StackLevel) -> list[SliceStack]:
        axis = self.slicing.axis

        def filtered(volume: int) -> SliceStack:
            image = level.filtered(self.dwi.volume_with_missing(volume), axis)
            return SliceStack.of(image, axis, self.lost[volume])

        return parallel_map(filtered, range(len(self.dwi)), n_threads=self.compute.n_threads)

    def problem(
        self,
        level: StackLevel,
        knots: Knots,
        stacks: Sequence[SliceStack],
        twists: np.ndarray,
        groups: Sequence[VolumeGroup] | None = None,
    ) -> CourseProblem:
        """Set up a level; of all groups when none are given."""
        members = [
            Member(
                group.volumes,
                self.dwi.gradients.select(group.volumes),
                group.coarse if level.highpass is None else group.fine,
                group.leave_one_out,
            )
            for group in groups or self.groups
        ]
        points = self.points(level, knots, stacks, twists)
        problem = CourseProblem(
            stacks,
            members,
            knots,
            points,
            self.dwi.brain_center,
            self.motion,
            BLOCK_MM * self.scale,
            self.compute.n_threads,
        )
        return problem.fitted(twists, -(-len(points) // POINTS_FOR_MODEL))

    def points(
        self, level: StackLevel, knots: Knots, stacks: Sequence[SliceStack], twists: np.ndarray
    ) -> np.ndarray:
        """Draw random points of the brain; at fine levels more where the images have edges."""
        affine, center = self.dwi.affine, self.dwi.brain_center
        if level.highpass is None:
            return jittered_points(self.mask, affine, level.n_points, self.random)
        candidates = jittered_points(self.reliable, affine, self.reliable.sum(), self.random)
        poses = exp_rigid(knots.of_slices(twists), center)
        volumes = self.groups[-1].volumes
        volumes = volumes[:: max(1, len(volumes) // 8)]
        slopes = parallel_iterate(
            lambda volume: stacks[volume].read(candidates, poses[volume]).slopes,
            volumes,
            n_threads=self.compute.n_threads,
        )
        return steepest_points(candidates, slopes, level.n_points, self.random)


def _evenly(n: int, most: int) -> np.ndarray:
    """Choose at most `most` of n, evenly."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(int)


def motion_over_error(knots: Knots, found: FoundCourse, in_mm: np.ndarray) -> np.ndarray:
    """Motion within each volume, in standard errors, (N,).

    Parameters
    ----------
    knots : Knots
    found : FoundCourse
    in_mm : (6,) array
        Millimetres for each unit of a twist.
    """
    away = knots.basis - knots.basis.mean(axis=0)
    far = np.einsum("zm,nma->nza", away, found.twists[knots.row] * in_mm)
    square = (far**2).sum(axis=2).mean(axis=1)
    among, errors = away.T @ away / len(away), np.zeros(len(square))
    for volume in np.flatnonzero(knots.moving).tolist():
        own = np.einsum("kama->km", found.posterior.of_volume(volume) * (in_mm**2)[:, None, None])
        errors[volume] = np.sqrt(square[volume] / (among * own).sum())
    return errors

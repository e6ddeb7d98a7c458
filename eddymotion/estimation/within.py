# SPDX-License-Identifier: Apache-2.0
"""Motion within volumes: from one pose a volume to a course of the head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from eddymotion.data.series import DWI
from eddymotion.estimation.continuous import (
    CourseProblem,
    CourseStepping,
    FoundCourse,
    Member,
    solve_course,
)
from eddymotion.estimation.coupled import POINTS_FOR_MODEL
from eddymotion.estimation.increments import Increments
from eddymotion.estimation.knots import Knots
from eddymotion.images.image import Image
from eddymotion.images.pyramid import BLOCK_MM, head_scale, jittered_points, low_pass, steepest
from eddymotion.images.stack import SliceStack
from eddymotion.machine.parallel import one_blas_thread, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, exp_rigid, log_rigid
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.models import LinearModel

log = logging.getLogger(__name__)

N_KNOTS, N_COARSE_KNOTS = 8, 4
"""Of a volume in which the head moved."""


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
        sizes = np.delete(image.voxel_sizes, axis)
        voxel = float(np.sqrt(sizes.prod()))
        narrow = low_pass(image, self.fwhm * voxel, not_along=axis)
        if self.highpass is None:
            return narrow
        wide = low_pass(image, self.highpass * voxel, not_along=axis)
        return Image(narrow.data - wide.data, image.affine, wide.missing)


LEVELS = (
    StackLevel(3.0, None, 8_000, N_COARSE_KNOTS, CourseStepping(4, 0.02, 4 / 3, 0.1)),
    StackLevel(1.0, 2.5, 12_000, N_KNOTS, CourseStepping(4, 0.002, 1.0, 0.01)),
    StackLevel(1.0, 2.5, 40_000, N_KNOTS, CourseStepping(3, 0.002, 1.0, 0.01)),
)


@dataclass(frozen=True, eq=False)
class VolumeGroup:
    """Volumes that predict each other, and what predicts them at coarse and at fine levels."""

    volumes: np.ndarray
    coarse: LinearModel
    fine: LinearModel
    leave_one_out: bool


@dataclass(eq=False)
class CourseSolver:
    """What all levels share.

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
    seed : int
    n_threads : int
    """

    dwi: DWI
    motion: Motion
    groups: Sequence[VolumeGroup]
    moving: np.ndarray
    lost: np.ndarray
    seed: int = 0
    n_threads: int = 1

    def __post_init__(self) -> None:
        dwi = self.dwi
        self.random = np.random.default_rng(self.seed)
        self.slicing = dwi.acquisition.slicing
        self.mask = ndimage.binary_dilation(dwi.mask)
        self.scale = head_scale(dwi.mask, dwi.voxel_sizes)
        self.voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
        self.in_mm = np.array([1.0] * 3 + [ROTATION_RADIUS_MM * self.scale] * 3)
        runs = dwi.acquisition.runs
        self.follows = np.diff(runs) == 0 if runs is not None else np.ones(len(dwi) - 1, bool)

    def solve(self) -> tuple[Knots, FoundCourse]:
        """Go through the levels."""
        dwi = self.dwi
        knots = Knots.between(self.slicing, 2, np.zeros(len(dwi), bool))
        twists = log_rigid(self.motion.head, dwi.brain_center)
        found, scale, stacks, filters = None, None, None, None
        for level in LEVELS:
            before, knots = knots, Knots.between(self.slicing, level.n_knots, self.moving)
            twists = knots.taken_over(twists, before)
            increments = Increments.of(knots, self.follows, self.in_mm)
            if scale is not None:
                scale = scale.copy()
                scale[0] *= np.sqrt((before.n_knots - 1) / (knots.n_knots - 1))
                increments = replace(increments, scale=scale)
            if filters != (level.fwhm, level.highpass):
                stacks, filters = self.stacks(level), (level.fwhm, level.highpass)
            problem = self.problem(level, knots, stacks, twists)
            stepping = replace(
                level.stepping,
                tolerance=level.stepping.tolerance * self.voxel,
                longest=level.stepping.longest * self.voxel,
            )
            found = solve_course(problem, twists, increments, stepping)
            log.debug("motion within volumes, %d points: %s", level.n_points, found)
            twists, scale = found.twists, found.increments.scale
        assert found is not None
        self.last = problem
        return knots, found

    def stacks(self, level: StackLevel) -> list[SliceStack]:
        """Filter all volumes in the planes of their slices."""
        axis = self.slicing.axis

        def filtered(volume: int) -> SliceStack:
            image = level.filtered(self.dwi.volume_with_missing(volume), axis)
            return SliceStack.of(image, axis, self.lost[volume])

        return parallel_map(filtered, range(len(self.dwi)), n_threads=self.n_threads)

    def problem(
        self, level: StackLevel, knots: Knots, stacks: Sequence[SliceStack], twists: np.ndarray
    ) -> CourseProblem:
        """Set up a level."""
        members = [
            Member(
                group.volumes,
                self.dwi.gradients.select(group.volumes),
                group.coarse if level.highpass is None else group.fine,
                group.leave_one_out,
            )
            for group in self.groups
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
            self.n_threads,
        )
        return problem.fitted(twists, -(-len(points) // POINTS_FOR_MODEL)).counted(twists)

    def points(
        self, level: StackLevel, knots: Knots, stacks: Sequence[SliceStack], twists: np.ndarray
    ) -> np.ndarray:
        """Draw random points of the brain; at fine levels more where the images have edges."""
        affine, center = self.dwi.affine, self.dwi.brain_center
        if level.highpass is None:
            return jittered_points(self.mask, affine, level.n_points, self.random)
        candidates = jittered_points(self.mask, affine, self.mask.sum(), self.random)
        poses = exp_rigid(knots.of_slices(twists), center)
        volumes = self.groups[-1].volumes
        volumes = volumes[:: max(1, len(volumes) // 8)]
        total = np.zeros((len(candidates), 3), np.float32)
        for volume in volumes:
            total += stacks[volume].read(candidates, poses[volume]).slopes
        steepness = np.linalg.norm(total, axis=1).astype(float)
        return candidates[steepest(steepness, level.n_points, self.random)]


def follow_head(
    dwi: DWI,
    motion: Motion,
    groups: Sequence[VolumeGroup],
    moving: np.ndarray,
    lost: np.ndarray,
    *,
    seed: int = 0,
    n_threads: int = 1,
) -> Motion:
    """Find the course of the head through the volumes in which it moved."""
    solver = CourseSolver(dwi, motion, groups, moving, lost, seed, n_threads)
    with one_blas_thread():
        knots, found = solver.solve()
    poses = exp_rigid(knots.of_slices(found.twists), dwi.brain_center)
    eddy = motion.eddy_currents
    poses = poses if eddy is None else eddy.shifts[:, None] @ poses
    matrices, trajectory = Trajectory.of_poses(
        poses, dwi.brain_center, dwi.affine, dwi.acquisition.slicing.axis
    )
    return replace(motion, matrices=matrices, trajectory=trajectory)

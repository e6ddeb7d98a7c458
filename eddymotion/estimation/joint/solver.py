# SPDX-License-Identifier: Apache-2.0
"""Solving all groups of volumes at one level of resolution."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import CoupledProblem, KeptMatrix
from eddymotion.estimation.equations.samples import LostSlices
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.equations.undetermined import free_directions
from eddymotion.estimation.equations.unknowns import Block, Poses
from eddymotion.estimation.fields.prior import NO_PRIOR
from eddymotion.estimation.joint.band_passed import BandPassedVolumes
from eddymotion.estimation.joint.known_fields import KnownFields
from eddymotion.estimation.joint.levels import (
    CHANCE_MM,
    COARSE_ITERATIONS,
    COARSE_TOLERANCE,
    FINE,
    FINE_TOLERANCE,
    MOST_POINTS,
    MOST_VALUES,
    NEGLIGIBLE,
    STEADY,
)
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.pyramid import BLOCK_MM, Level
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import twist_millimetres

log = logging.getLogger(__name__)


def group_motion(motion: Motion, group: VolumeGroup) -> Motion:
    """Motion of the volumes of a group, with fields if the group has some."""
    found, eddy = motion.select(group.volumes), motion.eddy_currents
    has_some = eddy is not None and eddy.coefficients[group.volumes].any()
    return found if group.has_fields or has_some else replace(found, eddy_currents=None)


def with_group(motion: Motion, group: VolumeGroup, found: Motion) -> Motion:
    """Put the motion of a group into that of the series."""
    eddy = motion.eddy_currents
    if eddy is not None and group.has_fields and found.eddy_currents is not None:
        coefficients = eddy.coefficients.copy()
        coefficients[group.volumes] = found.eddy_currents.coefficients
        eddy = replace(eddy, coefficients=coefficients)
    return replace(motion.updated(group.volumes, found.matrices), eddy_currents=eddy)


@dataclass(eq=False)
class JointSolver:
    """Solves groups of volumes at any level, and keeps what all levels share.

    Parameters
    ----------
    dwi : DWI
    max_steps : int
        Largest number of steps at a level.
    compute : Compute

    Attributes
    ----------
    bands : BandPassedVolumes
        The volumes, filtered; slices that lost signal have no weight.
    fields : KnownFields
    undetermined : (k, 6) array
        Directions of motion that the images do not show: nothing moves along them.
    chance : dict
        Name of a group → how far noise displaces its volumes at the first fine level, mm.
    """

    dwi: DWI
    max_steps: int
    compute: Compute
    chance: dict[str, float] = field(default_factory=dict, init=False)
    undetermined: np.ndarray = field(default_factory=lambda: np.empty((0, 6)), init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.compute.seed)
        self.bands = BandPassedVolumes(self.dwi, self.compute)
        self.fields = KnownFields(self.dwi)
        self.in_mm = twist_millimetres(self.bands.scale)

    def hold(self, directions: np.ndarray) -> None:
        """Start again, with nothing moving along some directions (k, 6)."""
        self.undetermined, self.fields.prior = directions, NO_PRIOR
        self.chance.clear()

    def solve(
        self, level: Level, groups: Sequence[VolumeGroup], motion: Motion
    ) -> tuple[Motion, list[Solution]]:
        """Solve each group at a level; return the motion and the solutions of the groups."""
        new, solutions = motion, []
        for group in groups:
            solution, found = self._solve_group(level, group, motion)
            new = with_group(new, group, found)
            solutions.append(solution)
        return new, solutions

    def _solve_group(
        self, level: Level, group: VolumeGroup, motion: Motion
    ) -> tuple[Solution, Motion]:
        start, problem = group_motion(motion, group), self.problem(level, group, motion)
        problem = replace(problem, lost=self.lost(group))
        max_steps = min(self.max_steps, COARSE_ITERATIONS)
        tolerance = COARSE_TOLERANCE * self.bands.width(level)
        kept = KeptMatrix(problem)
        if level.highpass is not None:
            kept = KeptMatrix.begun(problem, start)
            problem = kept.problem
            max_steps, tolerance = self.max_steps, FINE_TOLERANCE * self.bands.voxel
        progress = partial(self.compute.progress, description=f"motion of {group.name}, {level}")
        share = NEGLIGIBLE.get(level, 0.0)
        found, descent, seen = problem.solve(
            start, max_steps, tolerance, share, progress=progress, kept=kept
        )
        # fields that a prior holds are known for as many points as `weigh` reckoned with
        is_free = motion.eddy_currents is None or self.fields.prior is NO_PRIOR
        if level == FINE[0] and is_free and seen is not None:
            self.chance[group.name] = problem.chance(found, seen)
        log.debug("%s, %s, %d volumes: %s", group.name, level, len(start), descent)
        return Solution.of(problem, found, seen), found

    def problem(
        self,
        level: Level,
        group: VolumeGroup,
        motion: Motion,
        *,
        whole: Sequence[int] | np.ndarray = (),
        random: np.random.Generator | None = None,
    ) -> CoupledProblem:
        """Set up the problem of a group at a level; the volumes `whole` are not cropped.

        The points are drawn by `random`, so that no other step draws others, or by that of all.
        """
        own = self.bands.of_group(group, level, motion.matrices)
        uncut = self.bands.filtered(level, whole, motion.matrices, cut=False)
        for volume, spline in zip(whole, uncut, strict=True):
            own[int(np.flatnonzero(group.volumes == volume)[0])] = spline
        n_points = self.enough_points(group) if level == FINE[-1] else level.n_points
        drawn = replace(group.at(level), n_points=n_points)
        return CoupledProblem(
            own,
            self.dwi.gradients.select(group.volumes),
            group.coarse if level.highpass is None else group.fine,
            self.bands.points(drawn, own, motion.matrices[group.volumes], random or self.random),
            self.dwi.brain_center,
            blocks=self.blocks(group, motion),
            part_mm=BLOCK_MM * self.bands.scale,
            leave_one_out=group.leave_one_out,
            steady_mm=STEADY * self.bands.width(drawn),
            n_threads=self.compute.n_threads,
        )

    def lost(self, group: VolumeGroup) -> LostSlices | None:
        """Return the slices of a group that lost their signal, once these are known."""
        if (outliers := self.bands.outliers) is None:
            return None
        flagged, axis = outliers.flagged[group.volumes], outliers.slicing.axis
        return LostSlices(flagged, self.dwi.affine, axis)

    def enough_points(self, group: VolumeGroup) -> int:
        """Return how many points the last level has: more where noise displaces volumes far."""
        fewest, n_voxels = FINE[-1].n_points, int(self.bands.mask.sum())
        excess = self.chance.get(group.name, 0.0) / (CHANCE_MM * self.bands.scale)
        most = min(MOST_POINTS, n_voxels // 2, MOST_VALUES // len(group.volumes))
        return max(fewest, min(int(fewest * excess**2), most))

    def blocks(
        self, group: VolumeGroup, motion: Motion, design: np.ndarray | None = None
    ) -> list[Block]:
        """Return what is solved for in a group: poses, and fields where the motion has some."""
        free = free_directions(self.undetermined, self.in_mm) if len(self.undetermined) else None
        fields = self.fields.unknowns(group, motion, design)
        poses = Poses(self.dwi.brain_center, free)
        return [poses] if fields is None else [poses, fields]

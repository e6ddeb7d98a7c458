# SPDX-License-Identifier: Apache-2.0
"""Volumes that coarse levels left far from their neighbours in time, sought at many poses.

They are compared with the predictions from the others at many poses
(:mod:`eddymotion.estimation.equations.search`) until all stay where they are. Then volumes that
disagree with the others as a whole are compared with the b=0 volume
(:mod:`eddymotion.estimation.frames.anchors`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.estimation.equations.search import (
    agreement_with,
    places_by_signal,
    search,
    search_level,
)
from eddymotion.estimation.frames.anchors import LEAST_CORE, NO_DISAGREEMENT, Anchors, Disagreement
from eddymotion.estimation.joint.solver import JointSolver, group_motion, with_group
from eddymotion.estimation.outlier_volumes import far_from_neighbours
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.pyramid import Level
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rms_displacement

log = logging.getLogger(__name__)

MAX_SWEEPS, AT_HOME_MM = 6, 4.0
"""How often volumes far from their neighbours are searched at most, and the displacement (root
mean square, in a human head) below which a volume counts as staying where it is."""

WHOLE = 0.5
"""Unless a larger share of a group agrees with the b=0 volume on the poses relative to each other,
coarse levels have led the group astray, and it starts anew from the registrations to b=0. Two of
three single volumes of a scattered head find b=0 within a few millimetres."""

AGREEING = 0.9
"""A volume is where it belongs if it correlates with what the core predicts by at least this share
of what volumes of the core do (median). Volumes in place had 0.93 to 1.02 times as much at b=700
and 0.75 to 1.2 at b=3000, and volumes displaced by 10 mm 0.66 to 0.69 and 0.52 to 0.83."""

MAX_REUNIONS = 6
"""How often volumes that the registration to b=0 puts elsewhere are tried again at most."""


@dataclass(eq=False)
class OutlierSearch:
    """The search for volumes that are far from where they belong.

    Parameters
    ----------
    solver : JointSolver
    disagreement : Disagreement
        Volumes that the registration to b=0 puts elsewhere.
    """

    solver: JointSolver
    disagreement: Disagreement = NO_DISAGREEMENT

    def run(self, groups: Sequence[VolumeGroup], motion: Motion) -> Motion:
        """Search volumes that lie far from their neighbours in time, until all stay in place."""
        for group in groups:
            if len(self.far(group, motion)):
                motion = self._run_in(group, motion)
        return motion

    def far(self, group: VolumeGroup, motion: Motion) -> np.ndarray:
        """Return which volumes of a group lie far from their neighbours in time, (K,)."""
        if len(self.solver.undetermined) or not group.can_be_sought:
            return np.empty(0, int)
        center = self.solver.dwi.brain_center
        return far_from_neighbours(group_motion(motion, group), center)[0]

    def _run_in(self, group: VolumeGroup, motion: Motion) -> Motion:
        dwi, anchors = self.solver.dwi, None
        if len(dwi.gradients.b0s):
            anchors = Anchors.of(dwi, group.volumes, self.solver.compute.n_threads)
            motion = self._started_anew(group, motion, anchors)
        for _ in range(MAX_SWEEPS):
            far = self.far(group, motion)
            if not len(far):
                return motion
            motion, farthest = self._tried(group, motion, group_motion(motion, group), far)
            if farthest < self._at_home:
                break
        return motion if anchors is None else self._reunited(group, motion, anchors)

    def _started_anew(self, group: VolumeGroup, motion: Motion, anchors: Anchors) -> Motion:
        """Start from the registration of each volume to b=0, if coarse levels led most astray."""
        found = group_motion(motion, group)
        core, _ = anchors.from_poses(found, self.solver.compute.n_threads).core(found)
        if core.mean() > WHOLE:
            return motion
        log.debug("%s, %d of %d agree with b=0: from there", group.name, core.sum(), len(core))
        found = found.updated(np.arange(len(found)), anchors.matrices)
        return self._solved(group, motion, found, group.volumes)

    def _reunited(self, group: VolumeGroup, motion: Motion, anchors: Anchors) -> Motion:
        """Try volumes again that disagree with the others as a whole."""
        for _ in range(MAX_REUNIONS):
            found = group_motion(motion, group)
            anchors = anchors.from_poses(found, self.solver.compute.n_threads)
            core, offset = anchors.core(found)
            outside = np.flatnonzero(~core)
            if not len(outside) or core.sum() < LEAST_CORE:
                break
            by_b0 = anchors.matrices[outside] @ np.linalg.inv(offset)
            elsewhere, leaders = found.updated(outside, by_b0), np.flatnonzero(core)
            motion, farthest = self._tried(group, motion, elsewhere, outside, leaders)
            if farthest < self._at_home:
                break
        found = group_motion(motion, group)
        in_place = self._in_place(group, motion, anchors)
        self.disagreement = self.disagreement.updated(anchors, found, in_place)
        return motion

    def _in_place(self, group: VolumeGroup, motion: Motion, anchors: Anchors) -> np.ndarray:
        """Find the volumes of a group that agree with what the core predicts, (n,) bool.

        Volumes at the same pose are often registered to b=0 alike, and wrongly.
        """
        found = group_motion(motion, group)
        core, _ = anchors.core(found)
        if core.all() or core.sum() < LEAST_CORE:
            return core
        random = np.random.default_rng(self.solver.compute.seed)
        outside = group.volumes[~core]
        problem = self.solver.problem(self._level, group, motion, whole=outside, random=random)
        agreement = agreement_with(problem.with_model_fitted(found), found, np.flatnonzero(core))
        return core | (agreement >= AGREEING * np.median(agreement[core]))

    def _tried(
        self,
        group: VolumeGroup,
        motion: Motion,
        start: Motion,
        volumes: np.ndarray,
        core: np.ndarray | None = None,
    ) -> tuple[Motion, float]:
        """Try some volumes of a group at many poses, and solve the group from the best of them.

        Parameters
        ----------
        group : VolumeGroup
        motion : Motion
            Of the series.
        start : Motion
            Of the group.
        volumes : index array
            Of the group.
        core : index array, optional
            Volumes of it that predict the others. If given, the poses before count as starts, too.

        Returns
        -------
        motion : Motion
        farthest : float
            How far the search moved a volume at most, mm.
        """
        dwi, before = self.solver.dwi, group_motion(motion, group).matrices
        whole = group.volumes[volumes]
        problem = self.solver.problem(self._level, group, motion, whole=whole)
        found = search(
            problem.with_model_fitted(start),
            start,
            volumes,
            places_by_signal(dwi, group.volumes, start),
            known=core,
            starts=None if core is None else before,
        )
        distances = rms_displacement(found.matrices, before, dwi.brain_center)
        log.debug("%s, sought %d: moved by %s mm", group.name, len(volumes), distances[volumes])
        return self._solved(group, motion, found, whole), float(distances.max())

    def _solved(
        self, group: VolumeGroup, motion: Motion, found: Motion, moved: np.ndarray
    ) -> Motion:
        """Solve a group at the level of the search from the poses found; `moved` moved far."""
        self.solver.bands.stale = moved
        return self.solver.solve(self._level, [group], with_group(motion, group, found))[0]

    @property
    def _at_home(self) -> float:
        """Displacement (mm) below which a volume counts as staying where it is."""
        return AT_HOME_MM * self.solver.bands.scale

    @property
    def _level(self) -> Level:
        bands = self.solver.bands
        return search_level(bands.scale, bands.voxel)

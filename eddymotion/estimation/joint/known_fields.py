# SPDX-License-Identifier: Apache-2.0
"""Knowledge about the eddy-current fields of a series while it is solved."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.series import DWI
from eddymotion.estimation.equations.solution import Solution
from eddymotion.estimation.fields.evidence import shown_order, weigh_fields
from eddymotion.estimation.fields.following import (
    PoseResponse,
    covariances_by_ambiguity,
    covariances_by_neglect,
    displaced_a_radian,
    follow_poses,
    pose_regressors,
    usual_poses,
    with_offsets_of_poses,
)
from eddymotion.estimation.fields.prior import NO_PRIOR, FieldPrior
from eddymotion.estimation.fields.unknowns import UnknownFields
from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.images.pyramid import head_scale
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import log_rigid

log = logging.getLogger(__name__)

LEAST_FOUND_MM = 0.1
"""Least size of fields of a human head if the phase-encoding axis is not given: of the three axes,
the one that is found is also the one along which errors of the model look most like fields, by
0.07 mm in a head at rest without any."""

SOME_OF_BRAIN = 7
"""One in this many voxels of the brain is used to measure by how much fields displace it."""


@dataclass(eq=False)
class KnownFields:
    """The prior of the fields, and whether they follow the head.

    Parameters
    ----------
    dwi : DWI
    prior : FieldPrior
    suspected : EddyCurrents and PoseResponse, optional
        Fields that seem to follow a head which moved too little to be sure.
    a_radian : (3,) array, optional
        By how much fields of few volumes seem to change with the tilt of the head, mm along the
        phase encoding.
    """

    dwi: DWI
    prior: FieldPrior = NO_PRIOR
    suspected: tuple[EddyCurrents, PoseResponse] | None = None
    a_radian: np.ndarray | None = None

    def unknowns(
        self, group: VolumeGroup, motion: Motion, design: np.ndarray | None = None
    ) -> UnknownFields | None:
        """Return the fields of a group as unknowns; None where it has none.

        Parameters
        ----------
        group : VolumeGroup
        motion : Motion
        design : (N, D) array, optional
            What they are linear in, if all volumes share the unknowns.
        """
        eddy = motion.eddy_currents
        if eddy is None or not group.has_fields:
            return None
        gradients = self.dwi.gradients.select(group.volumes)
        known = self.prior.of_volumes(group.volumes)
        return UnknownFields(gradients, eddy.coefficients.shape[1], eddy.center, known, design)

    def poses(self, motion: Motion) -> np.ndarray:
        """Return the poses of all volumes against the first b=0, as fields follow them: (N, 5)."""
        first = int(self.dwi.gradients.b0s[0])
        return pose_regressors(motion.matrices, self.dwi.brain_center, first)

    def response(
        self, motion: Motion, group: VolumeGroup, terms: slice = slice(None)
    ) -> PoseResponse | None:
        """Measure how some terms of the fields follow the poses; None where nothing shows it."""
        assert motion.eddy_currents is not None
        if not len(self.dwi.gradients.b0s):
            return None
        poses = self.poses(motion)
        volumes = group.volumes[usual_poses(poses[group.volumes])]
        coefficients = motion.eddy_currents.coefficients[volumes, terms]
        return follow_poses(coefficients, self.dwi.gradients.select(volumes), poses[volumes])

    def weigh(
        self,
        motion: Motion,
        solution: Solution,
        group: VolumeGroup,
        *,
        by_evidence: bool,
        points: float = 1.0,
        follow: bool = False,
    ) -> Motion:
        """Learn what the fields have in common, and leave out those that the data do not show.

        Fields that follow the head stay.

        Parameters
        ----------
        motion : Motion
        solution : Solution
            Of the group.
        group : VolumeGroup
        by_evidence : bool
            Whether the data choose the order of the fields.
        points : float
            The prior is for a problem with this many times the points of the solution.
        follow : bool
            Whether the fields are known to follow the head.
        """
        system, eddy = solution.system, motion.eddy_currents
        assert eddy is not None
        if system is None:
            log.warning("eddy currents: too few points lie inside the volumes; no fields")
            return replace(motion, eddy_currents=None)
        poses = self._poses_followed(motion, group, known=follow)
        own = None if poses is None else poses[group.volumes]
        fields, gradients = eddy.select(group.volumes), solution.problem.gradients
        evidence, prior = weigh_fields(fields, gradients, system, own)
        for one in evidence:
            log.info("eddy currents: %s", one)
        order = eddy.order
        if by_evidence and poses is None:
            order = shown_order(evidence, self._least_mm)
        log.info("eddy currents: %s%s", order, ", by evidence" if by_evidence else "")
        self.prior = replace(prior.of_order(order).scaled(points), poses=poses)
        eddy = eddy.of_order(order)
        if poses is not None:
            eddy = self._with_response_of_others(eddy, group)
        return replace(motion, eddy_currents=None if order == "none" else eddy)

    @property
    def _least_mm(self) -> float:
        """Size (mm) below which fields do not count."""
        if self.dwi.acquisition.common_phase_encoding is not None:
            return 0.0
        return LEAST_FOUND_MM * head_scale(self.dwi.mask, self.dwi.voxel_sizes)

    def _poses_followed(
        self, motion: Motion, group: VolumeGroup, *, known: bool
    ) -> np.ndarray | None:
        """Return the poses of all volumes (N, 5) if the fields follow them, or are known to."""
        found = self.response(motion, group)
        if found is None:
            self._look_at_tilts(motion, group)
            return None
        log.info("off-resonance: %s", found)
        if known or found.is_there:
            return self.poses(motion)
        if found.is_suspected and motion.eddy_currents is not None:
            self.suspected = motion.eddy_currents, found
        return None

    def _look_at_tilts(self, motion: Motion, group: VolumeGroup) -> None:
        """Measure how fields of too few volumes for more follow pitch and roll alone."""
        eddy, volumes, self.a_radian = motion.eddy_currents, group.volumes, None
        if eddy is None or not len(self.dwi.gradients.b0s):
            return
        tilts = self.poses(motion)[volumes, 3:]
        found = follow_poses(eddy.coefficients[volumes], self.dwi.gradients.select(volumes), tilts)
        if found is not None and found.is_likely:
            log.info("off-resonance, tilts alone: %s", found)
            a_radian = displaced_a_radian(eddy, tilts, found.response, self._brain)
            self.a_radian = a_radian * np.abs(eddy.pe)

    def _with_response_of_others(self, eddy: EddyCurrents, group: VolumeGroup) -> EddyCurrents:
        """Give all volumes outside the group the fields that their poses ask for."""
        found, volumes, poses = self._follows(eddy, group), group.volumes, self.prior.poses
        assert found is not None
        coefficients = poses @ found.response
        coefficients[volumes] = self.prior.of_volumes(volumes).centred(
            eddy.coefficients[volumes], self.dwi.gradients.select(volumes)
        )
        return replace(eddy, coefficients=coefficients)

    def _follows(self, eddy: EddyCurrents | None, group: VolumeGroup) -> PoseResponse | None:
        """Measure how the fields of a group follow the poses of the prior; None without any."""
        poses, volumes = self.prior.poses, group.volumes
        if eddy is None or poses is None:
            return None
        own = self.dwi.gradients.select(volumes)
        return follow_poses(eddy.coefficients[volumes], own, poses[volumes])

    def covariances(self, motion: Motion, group: VolumeGroup) -> np.ndarray:
        """Covariance of what fields that follow the head leave open, (N, 6, 6); zero without.

        Or of what they do, where they seem to but are left out.
        """
        eddy, poses = motion.eddy_currents, self.prior.poses
        if eddy is not None and poses is not None:
            found = self._follows(eddy, group)
            if found is not None:
                return covariances_by_ambiguity(eddy, found.response, poses, self._brain)
        elif self.suspected is not None:
            eddy, seen = self.suspected
            first = motion.matrices[self.dwi.gradients.b0s[0]]
            moved = log_rigid(np.linalg.inv(first) @ motion.matrices, self.dwi.brain_center)
            poses = self.poses(motion)
            return covariances_by_neglect(eddy, seen.response, poses, moved, self._brain)
        return np.zeros((len(motion), 6, 6))

    def with_offsets(self, motion: Motion, group: VolumeGroup) -> Motion:
        """Attribute to fields that follow the head, if any, their part of the translations."""
        eddy, poses = motion.eddy_currents, self.prior.poses
        found = self._follows(eddy, group)
        if found is None:
            return motion
        assert eddy is not None
        assert poses is not None
        matrices = motion.matrices
        eddy = with_offsets_of_poses(eddy, found.response, poses, matrices, self._brain)
        return replace(motion, eddy_currents=eddy)

    @property
    def _brain(self) -> np.ndarray:
        """Points of the brain, RAS+ mm."""
        return apply_affine(self.dwi.affine, np.argwhere(self.dwi.mask)[::SOME_OF_BRAIN])

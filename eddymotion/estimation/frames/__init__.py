# SPDX-License-Identifier: Apache-2.0
"""Bringing b=0 and diffusion-weighted volumes into one frame.

An estimator aligns volumes of like contrast to each other. What remains unknown is one rigid
offset ``M`` between the frame of a diffusion-weighted group and that of the b=0 volumes. Two
sources determine it, weighted by how certain they are:

*Time.* How a head moves does not depend on the contrast of a volume.
:mod:`eddymotion.estimation.frames.course` learns from each group how the head moves from volume to
volume, and finds the offset at which the changes from b=0 to diffusion-weighted volumes and back
look alike.

*Images.* :mod:`eddymotion.estimation.frames.contrast` predicts the b=0 image from the
diffusion-weighted ones; the offset at which the prediction is best is a second estimate, with a
covariance.

If the two contradict each other beyond their errors, their distance becomes the error, and a
warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.undetermined import free_directions
from eddymotion.estimation.estimate import Estimate, nearest_in_time
from eddymotion.estimation.fields.following import covariances_by_tilt
from eddymotion.estimation.fields.offsets import with_offsets
from eddymotion.estimation.frames.errors import (
    covariances_of_few,
    twist_millimetres_of,
    with_standard_errors,
)
from eddymotion.estimation.frames.offset import begin_and_end, find_offset
from eddymotion.estimation.outlier_volumes import with_neighbours_poses
from eddymotion.machine.parallel import Compute, one_blas_thread
from eddymotion.mapping.motion import FrameEvidence, Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid

log = logging.getLogger(__name__)

ALMOST_B0 = 100.0
"""A lowest b-value (s/mm²) up to this one may be meant as b=0, as in other programs."""


@one_blas_thread()
def unite_frames(
    dwi: DWI,
    estimate: Estimate,
    *,
    align_shells: bool = True,
    compute: Compute | None = None,
) -> Motion:
    """Express the motion in the frame of the first b=0 volume.

    Parameters
    ----------
    dwi : DWI
    estimate : Estimate
        From an estimator: consistent within the b=0 volumes and within each of its groups.
    align_shells : bool
        Whether to estimate the offset of each group; it is taken as zero otherwise.
    compute : Compute, optional

    Returns
    -------
    Motion
        The identity for the reference volume: the first b=0, or volume 0 of a series without.
        It has standard errors if the estimate has covariances.
    """
    compute = compute or Compute()
    if estimate.unplaced is not None:
        return _unite_placed(dwi, estimate, align_shells, compute)
    estimate = replace(estimate, motion=with_offsets(estimate.motion, dwi.gradients))
    frame = CommonFrame(dwi, estimate, compute)
    groups = [dwi.gradients.dwis] if estimate.groups is None else estimate.groups
    if not len(dwi.gradients.b0s):
        log.warning(
            "no b=0 volume: the reference frame is that of volume 0%s", _hint(dwi.gradients)
        )
    elif align_shells:
        frame.join(groups)
    united = frame.motion()
    if united.frame_doubt is not None:
        log.warning("%s", united.frame_doubt)
    if estimate.covariances is None:
        return united
    common = frame.covariances + estimate.covariances[dwi.reference]
    common += covariances_of_few(united, groups, dwi)
    if estimate.a_radian is not None:
        common += covariances_by_tilt(united.head, estimate.a_radian)
    covariances = estimate.covariances + common
    covariances[dwi.reference] = 0.0
    within = None if estimate.within is None else estimate.within + common[:, None]
    return with_standard_errors(united, covariances, within, dwi)


def _hint(gradients: Gradients) -> str:
    """Advise which option makes the lowest b-value count as b=0, if it may be meant so."""
    lowest = float(gradients.bvals.min())
    if lowest > ALMOST_B0:
        return ""
    return (
        f"; the lowest b-value is {lowest:g}: if that is meant as b=0, write --b0-threshold "
        f"{ALMOST_B0:g} (in Python b0_threshold=)"
    )


@dataclass(eq=False)
class CommonFrame:
    """The frame of the reference volume, and the groups joined to it so far.

    Parameters
    ----------
    dwi : DWI
    estimate : Estimate
    compute : Compute

    Attributes
    ----------
    united : Motion
        In this frame, for the volumes that have been joined to it.
    covariances : (N, 6, 6) array
        Of the offset of each volume, summed over the groups by which it is joined to the b=0
        volumes.
    evidence : list of FrameEvidence
        Of each group.
    """

    dwi: DWI
    estimate: Estimate
    compute: Compute
    evidence: list[FrameEvidence] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.united = self.estimate.motion.relative_to(self.dwi.reference)
        self.covariances = np.zeros((len(self.dwi), 6, 6))

    def join(self, groups: Sequence[np.ndarray]) -> None:
        """Join groups of volumes to the b=0 volumes, those nearest in time first."""
        b0s = self.dwi.gradients.b0s
        b0_motion, placed = self.united.select(b0s), b0s
        waiting = sorted(groups, key=len, reverse=True)
        while waiting:
            group = waiting.pop(int(np.argmin([_apart(one, placed) for one in waiting])))
            self._join(group, placed, b0_motion)
            placed = np.concatenate([placed, group])

    def _join(self, group: np.ndarray, placed: np.ndarray, b0_motion: Motion) -> None:
        dwi, motion, undetermined = self.dwi, self.estimate.motion, self.estimate.undetermined
        joined = find_offset(
            dwi,
            b0_motion,
            group,
            motion.select(group),
            placed=(placed, begin_and_end(dwi, self.united)[:, placed]),
            common_motion=self.estimate.common_motion_of(group),
            removed=None if self.estimate.removed is None else self.estimate.removed[group],
            with_images=undetermined is None,
            compute=self.compute,
        )
        self.evidence.append(joined.evidence)
        log.info("frame of b=%.0f against b=0: %s", joined.evidence.bval, joined.evidence)
        offset = joined.offset
        if undetermined is not None:
            offset = _within_determined(offset, undetermined, dwi)
        self.united = self.united.updated(group, motion.matrices[group] @ offset)
        nearest = placed[np.abs(group[:, None] - placed).min(axis=0).argmin()]
        self.covariances[group] = joined.covariance + self.covariances[nearest]

    def motion(self) -> Motion:
        """Return the motion in this frame, with the error of the frame and the evidence for it."""
        error, covariance = None, None
        if self.evidence:
            of_axes = np.diagonal(self.covariances, axis1=1, axis2=2)[:, :3].max(axis=1)
            error, covariance = float(np.sqrt(of_axes.max())), self.covariances[of_axes.argmax()]
        undetermined = self.estimate.undetermined
        return replace(
            self.united,
            frame_error=error,
            frame_covariance=None if undetermined is not None else covariance,
            undetermined=undetermined,
            frame_evidence=max(self.evidence, key=_misfit, default=None),
        )


def _apart(group: np.ndarray, others: np.ndarray) -> int:
    """Smallest distance in time between two groups, in volumes."""
    return int(np.abs(group[:, None] - others).min())


def _misfit(evidence: FrameEvidence) -> tuple[bool, float]:
    return evidence.contradicted, np.nan_to_num(evidence.apart_mm, nan=-1.0)


def _unite_placed(dwi: DWI, estimate: Estimate, align_shells: bool, compute: Compute) -> Motion:
    """Unite the frames of the volumes that were placed, and give the others their poses."""
    assert estimate.unplaced is not None
    n, placed = len(dwi), np.flatnonzero(~estimate.unplaced)
    found = unite_frames(
        dwi.select(placed), estimate.select(placed), align_shells=align_shells, compute=compute
    )
    eddy, course = estimate.motion.eddy_currents, found.trajectory
    if eddy is not None and found.eddy_currents is not None:
        offsets = _of_all(found.eddy_currents, placed, n, offsets=0.0, offset_errors=np.nan)
        eddy = replace(eddy, **offsets)
    if course is not None:  # the others are at rest
        course = replace(
            course, **_of_all(course, placed, n, within=np.eye(4), standard_errors=np.nan)
        )
    poses = _of_all(found, placed, n, matrices=np.eye(4), standard_errors=np.nan)
    motion = replace(
        found, **poses, eddy_currents=eddy, trajectory=course, unplaced=estimate.unplaced
    )
    reference = np.array([dwi.reference])
    if estimate.unplaced[dwi.reference]:  # it gets this pose, whose errors are known
        reference = nearest_in_time(reference, placed)
    return with_neighbours_poses(motion).relative_to(int(reference[0]), dwi.center)


def _of_all(value: object, placed: np.ndarray, n: int, **others: Any) -> dict[str, Any]:
    """Extend arrays of `value` to n volumes; `others`: name → value for those not placed."""
    extended: dict[str, Any] = {}
    for name, other in others.items():
        if (known := getattr(value, name)) is not None:
            extended[name] = np.empty((n, *known.shape[1:]))
            extended[name][:] = other
            extended[name][placed] = known
    return extended


def _within_determined(offset: np.ndarray, directions: np.ndarray, dwi: DWI) -> np.ndarray:
    """Remove from an offset the directions that the images do not determine."""
    twist = log_rigid(offset, dwi.brain_center)
    in_mm = twist_millimetres_of(dwi)
    free = free_directions(directions, in_mm)
    return exp_rigid(free @ (free.T @ (twist * in_mm**2)), dwi.brain_center)

# SPDX-License-Identifier: Apache-2.0
"""The offset of one group of volumes against the b=0 volumes, by time and by images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.frames.contrast import offset_from_images
from eddymotion.estimation.frames.course import Course, OffsetEstimate, merged
from eddymotion.estimation.frames.motion_prior import MotionPrior
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.images.pyramid import head_scale
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import FrameEvidence, Motion
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.registration import GaussNewton

BEYOND_CHANCE = 22.5
"""Squared distance over variance, in six dimensions, that is exceeded by chance once in 1000."""

REACH_MM = 1.0
"""Standard error from time, in a human head, above which mean images give a further start."""

NEAR_VOXELS, CHANGES_FOR_NEAR = 0.1, 4
"""Standard error from time, in voxels, up to which images are compared at the finest level at
once; and least number of changes of contrast behind it, as a head may jump at one."""

CONFIRMED = 0.25
"""Distance of the registered mean images from the offset by images, relative to that between the
offsets by time and by images, below which they confirm it. They are a tenth to one millimetre
off."""

FOR_MEAN = 16
"""Volumes of a mean image, at most."""

COMMON_SHARE = 0.2
"""Displacement along the phase encoding that the fields of all directions share, relative to their
offsets (root mean square). In six real series with offsets of 0.2 to 1 mm, time and images differ
along it by 0.01 to 0.62 mm, which is 0.2 times the offsets beyond the errors. Along other axes the
difference is 0.07 mm."""

ENOUGH_VOLUMES = 6
"""The image term uses the lowest shell with at least this many volumes."""


@dataclass(frozen=True, eq=False)
class JoinedFrame:
    """How one group was joined to the b=0 volumes.

    Parameters
    ----------
    offset : (4, 4) array
        b=0 frame → frame of the group.
    covariance : (6, 6) array
        Of its error: mm, rad about the centre of the brain.
    evidence : FrameEvidence
    """

    offset: np.ndarray
    covariance: np.ndarray
    evidence: FrameEvidence


def find_offset(
    dwi: DWI,
    b0_motion: Motion,
    group: np.ndarray,
    motion: Motion,
    *,
    placed: tuple[np.ndarray, np.ndarray] | None = None,
    common_motion: np.ndarray | None = None,
    removed: np.ndarray | None = None,
    with_images: bool = True,
    compute: Compute | None = None,
) -> JoinedFrame:
    """Find the offset of one group from time and images.

    Parameters
    ----------
    dwi : DWI
    b0_motion : Motion
        Of the b=0 volumes, in their frame.
    group : (k,) index array
        Diffusion-weighted volumes.
    motion : Motion
        Their motion, in their frame. Offsets of fields are not part of it: time does not show
        them.
    placed : (n,) index array and (2, n, 4, 4) array, optional
        Volumes and poses, at their first and last excitations, in the frame of the b=0 volumes
        that time is to join the group to; the b=0 volumes when not given.
    common_motion : (6, 6) array, optional
        Covariance (mm, rad) of motion that all volumes of the group share and no b=0 has, since
        the head follows the gradients: time does not show it either.
    removed : (k, 6) array, optional
        Twists (mm, rad) after the poses of the group that were removed from them, since they
        follow the direction of diffusion. A part of the head's own trembling goes with them: how
        the head moves is learnt without this.
    with_images : bool
        Whether images are used. Directions that they do not determine would affect the others.
    compute : Compute, optional

    Returns
    -------
    JoinedFrame
    """
    compute = compute or Compute()
    volumes, poses = placed or (dwi.gradients.b0s, b0_motion.matrices)
    size = head_scale(dwi.mask, dwi.voxel_sizes)
    own, center = begin_and_end(dwi, motion), dwi.brain_center
    course = merged(volumes, poses, group, own, center, size)
    as_seen = own if removed is None else own @ exp_rigid(removed, center)
    prior = merged(volumes, poses, group, as_seen, center, size).prior()
    fields = covariance_of_fields(motion, course.in_group, course.changes)
    unseen = [one for one in (fields, common_motion) if one is not None]
    course = replace(course, displacement=np.sum(unseen, axis=0) if unseen else None)
    by_time, by_images = course.offset(prior), None
    if with_images:
        by_images = _by_images(dwi, b0_motion, group, motion, by_time, course, compute)
    bval, error = float(dwi.gradients.bvals[group].mean()), _error_mm(by_time.covariance)
    if by_images is None:
        evidence = FrameEvidence(bval, error, np.nan, np.nan, np.nan, False)
        return JoinedFrame(by_time.offset, by_time.covariance, evidence)
    both = course.offset(prior, by_images)
    against = contradicting(course, prior, by_time, by_images, both)
    if by_time in against and np.count_nonzero(course.changes) == 1:
        which = _lowest_shell(dwi, group)
        series = dwi, b0_motion, group[which], motion.select(which)
        for one in _registered(*series, by_time.offset, compute.seed):
            if confirms(course, one, by_time, by_images):
                against.remove(by_time)
    contradictions = [course.apart(both.offset, one.offset) for one in against]
    covariance = both.covariance
    if contradictions:  # either may be right
        covariance = covariance + np.diag(np.square(contradictions).max(axis=0))
    apart = course.apart(by_time.offset, by_images.offset)
    evidence = FrameEvidence(
        bval,
        error,
        _error_mm(by_images.covariance),
        float(np.linalg.norm(apart[:3])),
        float(np.rad2deg(np.linalg.norm(apart[3:]))),
        bool(contradictions),
    )
    return JoinedFrame(both.offset, covariance, evidence)


def _by_images(
    dwi: DWI,
    b0_motion: Motion,
    group: np.ndarray,
    motion: Motion,
    by_time: OffsetEstimate,
    course: Course,
    compute: Compute,
) -> OffsetEstimate | None:
    """Find the offset from the images, starting from that by time; None if they do not show it."""
    error, which = _error_mm(by_time.covariance), _lowest_shell(dwi, group)
    series = dwi, b0_motion, group[which], motion.select(which)
    voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
    n_changes = int(np.count_nonzero(course.changes))
    others = []
    if error >= REACH_MM * course.size:
        others = _registered(*series, by_time.offset, compute.seed)
    near = error < NEAR_VOXELS * voxel and n_changes >= CHANGES_FOR_NEAR
    image = offset_from_images(*series, by_time.offset, others=others, near=near, compute=compute)
    return None if image is None else OffsetEstimate(*image)


def covariance_of_fields(
    motion: Motion, in_group: np.ndarray, changes: np.ndarray
) -> np.ndarray | None:
    """Return the covariance (mm, rad) of displacements of a group by fields; None without fields.

    Steps along the phase encoding show the offsets of the fields only as far as these follow the
    gradient, with an error, and not their common part.

    Parameters
    ----------
    motion : Motion
        Of the n volumes of the group.
    in_group : (N,) bool array
        Where these are in a course.
    changes : (N − 1,) array
        Where the course changes between the group and others.
    """
    eddy = motion.eddy_currents
    if eddy is None or eddy.offsets is None or eddy.offset_errors is None:
        return None
    at_change = np.zeros(len(in_group), bool)
    at_change[:-1] |= changes != 0
    at_change[1:] |= changes != 0
    errors = eddy.offset_errors[at_change[in_group]]
    variance = np.mean(errors**2) + COMMON_SHARE**2 * np.mean(eddy.offsets**2)
    along = np.append(eddy.pe, np.zeros(3))
    return variance * np.outer(along, along)


def _registered(
    dwi: DWI,
    b0_motion: Motion,
    volumes: np.ndarray,
    motion: Motion,
    start: np.ndarray,
    seed: int,
) -> list[np.ndarray]:
    """Find an offset by mutual information of mean images; none where they share too little.

    Its error is a tenth of a millimetre or more, but it is found from as far as heads move.
    """
    means = (
        _mean_image(dwi, dwi.gradients.b0s, b0_motion),
        _mean_image(dwi, volumes, motion),
    )
    with suppress(EddymotionError):
        found = GaussNewton().register(*means, metric="nmi", init=start, seed=seed)
        return [found.matrix]
    return []


def _mean_image(dwi: DWI, volumes: np.ndarray, motion: Motion) -> Image:
    """Average volumes, whose motion this is, in their frame."""
    every = -(-len(volumes) // FOR_MEAN)
    points, total = grid_points(dwi.shape, dwi.affine), np.zeros(dwi.mask.size)
    for index in range(0, len(volumes), every):
        spline = dwi.volume(volumes[index]).spline
        total += np.nan_to_num(motion.mapping(index).sample(spline, points))
    return Image(total.reshape(dwi.shape).astype(np.float32), dwi.affine)


def begin_and_end(dwi: DWI, motion: Motion) -> np.ndarray:
    """Poses of the head at the first and at the last excitation of each volume, (2, N, 4, 4)."""
    groups = dwi.acquisition.slicing.groups
    if motion.trajectory is None or not groups:
        return np.stack([motion.head, motion.head])
    return np.stack([motion.head_at(groups[0][0]), motion.head_at(groups[-1][0])])


def contradicting(
    course: Course,
    prior: MotionPrior,
    by_time: OffsetEstimate,
    by_images: OffsetEstimate,
    both: OffsetEstimate,
) -> list[OffsetEstimate]:
    """Return which of the estimates, by time and by images, contradict the offset from both."""
    found = []
    if course.squared(both.offset, by_images) > BEYOND_CHANCE:
        found.append(by_images)
    sum_of_both = OffsetEstimate(by_images.offset, by_images.covariance + by_time.covariance)
    if (
        course.squared(by_time.offset, sum_of_both) > BEYOND_CHANCE
        and course.rest_misfit(both, prior) > BEYOND_CHANCE
    ):
        found.append(by_time)
    return found


def confirms(
    course: Course, registered: np.ndarray, by_time: OffsetEstimate, by_images: OffsetEstimate
) -> bool:
    """Whether mean images, registered from the offset by time, end near the offset by images.

    Then the head jumped at the only change of contrast: its course does not show this.
    """
    to_images, between = (
        np.linalg.norm(course.apart(one, by_images.offset) * course.in_mm)
        for one in (registered, by_time.offset)
    )
    return bool(to_images < CONFIRMED * between)


def _error_mm(covariance: np.ndarray) -> float:
    """Return the standard error of a translation, mm an axis."""
    return float(np.sqrt(np.trace(covariance[:3, :3]) / 3))


def _lowest_shell(dwi: DWI, group: np.ndarray) -> np.ndarray:
    """Positions in `group` of the volumes whose contrast is nearest to that of b=0."""
    bvals = dwi.gradients.bvals[group]
    if dwi.gradients.is_shelled:
        shells = [np.flatnonzero(np.isin(group, shell)) for shell in dwi.gradients.shells]
        shells = [shell for shell in shells if len(shell)]
        return next((shell for shell in shells if len(shell) >= ENOUGH_VOLUMES), shells[0])
    lowest = np.argsort(bvals, kind="stable")[: max(ENOUGH_VOLUMES, len(group) // 3)]
    return np.sort(lowest)

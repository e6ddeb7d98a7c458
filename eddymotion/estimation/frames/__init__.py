# SPDX-License-Identifier: Apache-2.0
"""b=0 and diffusion-weighted volumes into one frame.

An estimator aligns volumes of like contrast to each other. What remains unknown is one rigid
offset ``M`` between the frame of a diffusion-weighted group and that of the b=0 volumes. Two
things tell it, and the better known counts more:

*Time.* A head does not know which contrast is on. :mod:`eddymotion.estimation.frames.course`
learns from each group how it moves from volume to volume, and finds the offset at which the
changes from b=0 to diffusion-weighted volumes and back look like that.

*Images.* :mod:`eddymotion.estimation.frames.contrast` predicts the b=0 image from the
diffusion-weighted ones; the offset at which that goes best is one more guess, with a covariance.

Where the two contradict each other beyond their errors, the error becomes as large as they are
apart, and it is said.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.equations.undetermined import AFFECTED, free_directions
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.fields.offsets import with_offsets
from eddymotion.estimation.frames.contrast import offset_from_images
from eddymotion.estimation.frames.course import Course, OffsetEstimate, merged
from eddymotion.estimation.frames.motion_prior import MotionPrior
from eddymotion.estimation.outlier_volumes import with_neighbours_poses
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.images.pyramid import head_scale
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.mapping.motion import FrameEvidence, Motion
from eddymotion.mapping.rigid import (
    exp_rigid,
    log_rigid,
    rigid_parameters,
    twist_millimetres,
)
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.registration import GaussNewton

log = logging.getLogger(__name__)

BEYOND_CHANCE = 22.5
"""Squared distance over variance, in six dimensions, that chance exceeds once in a thousand."""

FEW_VOLUMES = 6
"""Frames of fewer volumes are hardly determined by them."""

FAR_MM = 2.0
"""Way to the nearer neighbour, in a human head, from which on such a volume is reported."""

Z_95 = 1.96

REACH_MM = 1.0
"""Standard error of time, in a human head, beyond which mean images are registered for a start."""

NEAR_VOXELS, CHANGES_FOR_NEAR = 0.1, 4
"""Standard error of time, in voxels, up to which images are compared at their finest at once, and
changes of contrast that it has to come from: a head may jump at one."""

FOR_MEAN = 16
"""Volumes of a mean image, at most."""

COMMON_SHARE = 0.2
"""What the fields of all directions have in common along the phase encoding, relative to their
offsets (root mean square). Along it, time and images of six real series with offsets of 0.2 to 1
mm were 0.01 to 0.62 mm apart, 0.2 times the offsets beyond their errors; along other axes 0.07."""

ENOUGH_VOLUMES = 6
"""The image term uses the lowest shell with so many volumes."""


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


@one_blas_thread()
def unite_frames(
    dwi: DWI,
    estimate: Estimate,
    *,
    groups: Sequence[np.ndarray] | None = None,
    align_shells: bool = True,
    seed: int = 0,
    n_threads: int = 1,
) -> Motion:
    """Express the motion in the frame of the first b=0 volume.

    Parameters
    ----------
    dwi : DWI
    estimate : Estimate
        From an estimator: b=0 and diffusion-weighted volumes each consistent among themselves.
    groups : sequence of index arrays, optional
        Diffusion-weighted volumes that share a frame; all of them when not given.
    align_shells : bool
        Whether to estimate the offset of each group; otherwise it is taken as none.
    seed : int
        Of the random points.
    n_threads : int

    Returns
    -------
    Motion
        The identity for the reference volume: the first b=0, or volume 0 of a series without.
        With standard errors if the estimate has covariances.
    """
    if estimate.unplaced is not None:
        return _unite_placed(dwi, estimate, groups, align_shells, seed, n_threads)
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    motion = with_offsets(estimate.motion, dwi.gradients)
    covariances = estimate.covariances
    united = motion.relative_to(dwi.reference)
    of_frame = np.zeros((len(dwi), 6, 6))
    frame_error: float | None = None
    frame_covariance: np.ndarray | None = None
    evidence: list[FrameEvidence] = []
    if not len(b0s):
        log.warning("no b=0 volume: the reference frame is that of volume 0")
    elif align_shells:
        b0_motion = united.select(b0s)
        placed, waiting = b0s, [dwis] if groups is None else sorted(groups, key=len, reverse=True)
        while waiting:
            group = waiting.pop(int(np.argmin([volumes_apart(one, placed) for one in waiting])))
            joined = find_offset(
                dwi,
                b0_motion,
                group,
                motion.select(group),
                placed=(placed, _begin_and_end(dwi, united)[:, placed]),
                with_images=estimate.undetermined is None,
                seed=seed,
                n_threads=n_threads,
            )
            evidence.append(joined.evidence)
            log.info("frame of b=%.0f against b=0: %s", joined.evidence.bval, joined.evidence)
            offset = joined.offset
            if estimate.undetermined is not None:
                offset = _within_determined(offset, estimate.undetermined, dwi)
            nearest = placed[np.abs(group[:, None] - placed).min(axis=0).argmin()]
            united = united.updated(group, motion.matrices[group] @ offset)
            of_frame[group] = joined.covariance + of_frame[nearest]
            placed = np.concatenate([placed, group])
        of_axes = np.diagonal(of_frame, axis1=1, axis2=2)[:, :3].max(axis=1)
        frame_covariance = of_frame[of_axes.argmax()]
        frame_error = float(np.sqrt(of_axes.max()))
    united = replace(
        united,
        frame_error=frame_error,
        frame_covariance=None if estimate.undetermined is not None else frame_covariance,
        undetermined=estimate.undetermined,
        frame_evidence=max(evidence, key=_misfit, default=None),
    )
    if united.frame_doubt is not None:
        log.warning("%s", united.frame_doubt)
    if covariances is None:
        return united
    common = of_frame + covariances[dwi.reference]
    if groups is not None:
        common += of_few(united, groups, dwi)
    covariances = covariances + common
    covariances[dwi.reference] = 0.0
    within = None if estimate.within is None else estimate.within + common[:, None]
    return _with_errors(united, covariances, within, dwi)


def _with_errors(
    united: Motion, covariances: np.ndarray, within: np.ndarray | None, dwi: DWI
) -> Motion:
    """Give the motion its standard errors, from covariances in its frame.

    Of the volumes (N, 6, 6) and, with a trajectory, of the slices (N, Z, 6, 6).
    """
    errors = standard_errors(united.matrices, covariances, dwi.brain_center, dwi.center)
    if united.undetermined is not None:
        errors[:, _affected(united.undetermined, dwi)] = np.nan
    united = replace(united, standard_errors=errors)
    if within is None or united.trajectory is None:
        return united
    poses = united.trajectory.poses(united.matrices)
    flat = standard_errors(
        poses.reshape(-1, 4, 4), within.reshape(-1, 6, 6), dwi.brain_center, dwi.center
    )
    of_slices = flat.reshape(*poses.shape[:2], 6)
    at_rest = ~united.trajectory.moving
    of_slices[at_rest] = errors[at_rest, None]
    course = replace(united.trajectory, standard_errors=of_slices)
    return replace(united, trajectory=course)


def of_few(motion: Motion, groups: Sequence[np.ndarray], dwi: DWI) -> np.ndarray:
    """Return the covariances of what few volumes in a frame do not tell, (N, 6, 6).

    Three to five directions predict one another poorly, and a volume may settle far from where it
    is, well within its own errors. What speaks against that is the course of the head alone: such
    a volume is known no better than it lies near one of its neighbours in time.
    """
    found = np.zeros((len(motion), 6, 6))
    few = np.concatenate([np.array([], int), *(one for one in groups if len(one) < FEW_VOLUMES)])
    far = []
    for volume in few.astype(int):
        beside = [other for other in (volume - 1, volume + 1) if 0 <= other < len(motion)]
        ways = log_rigid(
            np.linalg.inv(motion.head[volume]) @ motion.head[beside], dwi.brain_center
        )
        way = ways[np.linalg.norm(ways * in_millimetres(dwi), axis=1).argmin()]
        found[volume] = np.diag(np.square(way / Z_95))
        if np.linalg.norm(way * in_millimetres(dwi)) > FAR_MM * head_scale(
            dwi.mask, dwi.voxel_sizes
        ):
            far.append(volume)
    if far:
        log.warning(
            "volumes %s: away from both their neighbours in time, and of too few directions at "
            "their b-value to be sure; their standard errors say so",
            ", ".join(map(str, sorted(far))),
        )
    return found


def _misfit(evidence: FrameEvidence) -> tuple[bool, float]:
    return evidence.contradicted, np.nan_to_num(evidence.apart_mm, nan=-1.0)


def _unite_placed(
    dwi: DWI,
    estimate: Estimate,
    groups: Sequence[np.ndarray] | None,
    align_shells: bool,
    seed: int,
    n_threads: int,
) -> Motion:
    """Unite the frames of the volumes that were placed, and give the others their poses."""
    assert estimate.unplaced is not None
    placed = np.flatnonzero(~estimate.unplaced)
    part = replace(estimate, groups=groups).select(placed)
    found = unite_frames(
        dwi.select(placed),
        part,
        groups=part.groups,
        align_shells=align_shells,
        seed=seed,
        n_threads=n_threads,
    )
    matrices = np.tile(np.eye(4), (len(dwi), 1, 1))
    matrices[placed] = found.matrices
    errors = None
    if found.standard_errors is not None:
        errors = np.full((len(dwi), 6), np.nan)
        errors[placed] = found.standard_errors
    eddy = estimate.motion.eddy_currents
    if eddy and found.eddy_currents and found.eddy_currents.offsets is not None:
        offsets, offset_errors = np.zeros(len(dwi)), np.full(len(dwi), np.nan)
        offsets[placed] = found.eddy_currents.offsets
        offset_errors[placed] = found.eddy_currents.offset_errors
        eddy = replace(eddy, offsets=offsets, offset_errors=offset_errors)
    motion = Motion(
        matrices,
        errors,
        found.frame_error,
        eddy,
        estimate.unplaced,
        estimate.undetermined,
        found.frame_evidence,
        trajectory=_of_all(found.trajectory, placed, len(dwi)),
        order_doubt=found.order_doubt,
        frame_covariance=found.frame_covariance,
    )
    united = with_neighbours_poses(motion).relative_to(dwi.reference)
    if estimate.unplaced[dwi.reference]:  # at the pose of a neighbour, whose errors are known
        united = replace(united, standard_errors=errors)
    return united


def _of_all(course: Trajectory | None, placed: np.ndarray, n: int) -> Trajectory | None:
    """Give the volumes that were not placed a head at rest."""
    if course is None:
        return None
    within = np.tile(np.eye(4), (n, course.n_slices, 1, 1))
    within[placed] = course.within
    errors = None
    if course.standard_errors is not None:
        errors = np.full((n, course.n_slices, 6), np.nan)
        errors[placed] = course.standard_errors
    return replace(course, within=within, standard_errors=errors)


def _within_determined(offset: np.ndarray, directions: np.ndarray, dwi: DWI) -> np.ndarray:
    """Take out of an offset what the images do not show."""
    twist = log_rigid(offset, dwi.brain_center)
    in_mm = in_millimetres(dwi)
    free = free_directions(directions, in_mm)
    return exp_rigid(free @ (free.T @ (twist * in_mm**2)), dwi.brain_center)


def _affected(directions: np.ndarray, dwi: DWI) -> np.ndarray:
    """Which of :func:`rigid_parameters` change along directions that are not determined, (6,)."""
    in_mm = in_millimetres(dwi)
    along = exp_rigid(directions / in_mm, dwi.brain_center)
    changes = np.abs(rigid_parameters(along, dwi.center)) * in_mm
    return changes.max(axis=0) > AFFECTED


def in_millimetres(dwi: DWI) -> np.ndarray:
    """Millimetres for each unit of a twist (mm, rad) of this head, (6,)."""
    return twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes))


def volumes_apart(group: np.ndarray, others: np.ndarray) -> int:
    """How many volumes lie between two groups at least, plus one."""
    return int(np.abs(group[:, None] - others).min())


def find_offset(
    dwi: DWI,
    b0_motion: Motion,
    group: np.ndarray,
    motion: Motion,
    *,
    placed: tuple[np.ndarray, np.ndarray] | None = None,
    with_images: bool = True,
    seed: int = 0,
    n_threads: int = 1,
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
        Theirs, in their frame. The offsets of the fields are no motion: time does not see them.
    placed : (n,) index array and (2, n, 4, 4) array, optional
        Volumes and poses, at their first and last excitations, in the frame of the b=0 volumes
        that time is to join the group to; the b=0 volumes when not given.
    with_images : bool
        Whether images have a say; what they do not determine would pull on the rest.
    seed : int
    n_threads : int

    Returns
    -------
    JoinedFrame
    """
    volumes, poses = placed or (dwi.gradients.b0s, b0_motion.matrices)
    size = head_scale(dwi.mask, dwi.voxel_sizes)
    course = merged(volumes, poses, group, _begin_and_end(dwi, motion), dwi.brain_center, size)
    course = replace(course, beside=beside_motion(motion, course.in_group, course.changes))
    prior = course.prior()
    by_time = course.offset(prior)
    error, which = _error_mm(by_time.covariance), _lowest_shell(dwi, group)
    voxel, n_changes = (
        float(np.cbrt(np.prod(dwi.voxel_sizes))),
        int(np.count_nonzero(course.changes)),
    )
    series, image = (dwi, b0_motion, group[which], motion.select(which)), None
    if with_images:
        image = offset_from_images(
            *series,
            by_time.offset,
            others=[] if error < REACH_MM * size else _registered(*series, by_time.offset, seed),
            near=error < NEAR_VOXELS * voxel and n_changes >= CHANGES_FOR_NEAR,
            seed=seed,
            n_threads=n_threads,
        )
    bval = float(dwi.gradients.bvals[group].mean())
    if image is None:
        evidence = FrameEvidence(bval, error, np.nan, np.nan, np.nan, False)
        return JoinedFrame(by_time.offset, by_time.covariance, evidence)
    by_images = OffsetEstimate(*image)
    both = course.offset(prior, by_images)
    contradictions = [
        course.apart(both.offset, one.offset)
        for one in contradicting(course, prior, by_time, by_images, both)
    ]
    covariance = both.covariance
    if contradictions:  # one of the two is right
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


def beside_motion(motion: Motion, in_group: np.ndarray, changes: np.ndarray) -> np.ndarray | None:
    """Return the covariance (mm, rad) of what fields displace a group by; None without fields.

    Steps along the phase encoding tell the offsets of the fields, as far as these turn with the
    gradient, with an error, and not what they have in common.

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

    It is a tenth of a millimetre and more off, but found from as far as heads move.
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


def _begin_and_end(dwi: DWI, motion: Motion) -> np.ndarray:
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
    """Find what of time and images contradicts the offset that was found from both."""
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


def standard_errors(
    matrices: np.ndarray, covariances: np.ndarray, origin: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Turn covariances of poses into standard errors of :func:`rigid_parameters`.

    Parameters
    ----------
    matrices : (N, 4, 4) array
    covariances : (N, 6, 6) array
        Of ``δ`` in ``T exp(δ)`` about `origin`.
    origin, center : (3,) array
        Where the errors and where the parameters are measured, RAS+ mm.

    Returns
    -------
    (N, 6) array
        mm, rad.
    """
    tiny = 1e-4
    steps = exp_rigid(tiny * np.eye(6), origin)
    here = rigid_parameters(matrices, center)
    moved = rigid_parameters(matrices[:, None] @ steps, center)
    jacobian = (moved - here[:, None]).transpose(0, 2, 1) / tiny
    spread = np.einsum("nki,nij,nkj->nk", jacobian, covariances, jacobian)
    return np.sqrt(np.maximum(spread, 0.0))

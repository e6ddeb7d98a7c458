# SPDX-License-Identifier: Apache-2.0
"""b=0 and diffusion-weighted volumes into one frame.

An estimator aligns volumes of like contrast to each other. What remains unknown is one rigid
offset ``M`` between the frame of a diffusion-weighted group and that of the b=0 volumes. Two
things tell it, and the better known counts more:

*Time.* Between two consecutive volumes a head mostly rests. Every b=0 volume ``k`` and
diffusion-weighted volume ``j`` close in time propose ::

    M_kj = T_j⁻¹ T_k        (exact if the head did not move between k and j)

with a scale that grows with the time between the two, and Student-t tails, so that a jump between
some of them does no harm as long as others agree.

*Images.* :mod:`eddymotion.estimation.contrast` predicts the b=0 image from the diffusion-weighted
ones; the offset at which that goes best is one more proposal, with a covariance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.estimation.contrast import offset_from_images
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.fields import with_offsets
from eddymotion.estimation.strays import with_neighbours_poses
from eddymotion.estimation.undetermined import AFFECTED, free_part
from eddymotion.geometry import (
    ROTATION_RADIUS_MM,
    Motion,
    exp_rigid,
    log_rigid,
    rigid_parameters,
)
from eddymotion.parallel import one_blas_thread
from eddymotion.pyramid import head_scale

log = logging.getLogger(__name__)

MAX_VOLUMES_APART = 4
FLOOR_MM = 0.03
"""Scale of proposals at zero time, for a human head: the precision within the groups."""

QUIET_QUANTILE, QUIET_FACTOR = 0.15, 0.67
"""The scale of rest: this quantile of the steps between consecutive volumes over this factor,
so that even a head that moves half of the time is judged by its quiet moments."""

PAIRS_A_B0 = 2.0
"""All pairs of one b=0 volume share its error: together they count as so many."""

IMAGE_COUNT = 4.0
"""The image term outweighs a single b=0 volume where the two are far apart (the head jumped right
after it), but not two that agree with each other."""

IMAGE_FLOOR_VOXELS = 0.015
"""Error (voxels at b=1000 s/mm², in proportion to the b-value above) that the image term keeps
however many points it has: what mean and deviation do not tell about a voxel."""

ENOUGH_VOLUMES = 6
"""The image term uses the lowest shell with so many volumes."""


@dataclass(frozen=True, eq=False)
class Brain:
    """What rigid offsets are measured by.

    Parameters
    ----------
    center : (3,) array
        RAS+ mm.
    scale : float
        Size relative to a human brain.
    """

    center: np.ndarray
    scale: float = 1.0

    @classmethod
    def of(cls, dwi: DWI) -> Brain:
        """Measure the brain of a series."""
        return cls(dwi.brain_center, head_scale(dwi.mask, dwi.voxel_sizes))

    @property
    def in_mm(self) -> np.ndarray:
        """Millimetres for each unit of a twist (mm, rad), (6,)."""
        return np.array([1.0] * 3 + [ROTATION_RADIUS_MM * self.scale] * 3)


@dataclass(frozen=True, eq=False)
class _Proposals:
    """Candidates for an offset, with what they weigh.

    Parameters
    ----------
    offsets : (P, 4, 4) array
    variances : (P,) array
        mm²
    counts : (P,) array
        How many independent observations each stands for.
    """

    offsets: np.ndarray
    variances: np.ndarray
    counts: np.ndarray


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
    frame_error = None
    if not len(b0s):
        log.warning("no b=0 volume: the reference frame is that of volume 0")
    elif align_shells:
        to_reference = np.linalg.inv(motion[dwi.reference])
        b0_matrices = motion.matrices[b0s] @ to_reference
        placed, waiting = b0s, [dwis] if groups is None else sorted(groups, key=len, reverse=True)
        while waiting:
            group = waiting.pop(int(np.argmin([volumes_apart(one, placed) for one in waiting])))
            offset, covariance = find_offset(
                dwi,
                b0_matrices,
                group,
                motion.select(group),
                placed=(placed, united.head[placed]),
                by_images=estimate.undetermined is None,
                seed=seed,
                n_threads=n_threads,
            )
            if estimate.undetermined is not None:
                offset = _within_determined(offset, estimate.undetermined, Brain.of(dwi))
            nearest = placed[np.abs(group[:, None] - placed).min(axis=0).argmin()]
            united = united.updated(group, motion.matrices[group] @ offset)
            of_frame[group] = covariance + of_frame[nearest]
            placed = np.concatenate([placed, group])
        frame_error = float(np.sqrt(of_frame[:, 0, 0].max()))
    united = replace(united, frame_error=frame_error, undetermined=estimate.undetermined)
    if covariances is None:
        return united
    total = covariances + of_frame + covariances[dwi.reference]
    total[dwi.reference] = 0.0
    errors = standard_errors(united.matrices, total, dwi.brain_center, dwi.center)
    if estimate.undetermined is not None:
        errors[:, _affected(estimate.undetermined, dwi)] = np.nan
    return replace(united, standard_errors=errors)


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
        matrices, errors, found.frame_error, eddy, estimate.unplaced, estimate.undetermined
    )
    return with_neighbours_poses(motion).relative_to(dwi.reference)


def _within_determined(offset: np.ndarray, directions: np.ndarray, brain: Brain) -> np.ndarray:
    """Take out of an offset what the images do not show."""
    twist = log_rigid(offset, brain.center)
    return exp_rigid(free_part(directions, brain.in_mm) @ twist, brain.center)


def _affected(directions: np.ndarray, dwi: DWI) -> np.ndarray:
    """Which of :func:`rigid_parameters` change along directions that are not determined, (6,)."""
    brain = Brain.of(dwi)
    along = exp_rigid(directions / brain.in_mm, dwi.brain_center)
    changes = np.abs(rigid_parameters(along, dwi.center)) * brain.in_mm
    return changes.max(axis=0) > AFFECTED


def volumes_apart(group: np.ndarray, others: np.ndarray) -> int:
    """How many volumes lie between two groups at least, plus one."""
    return int(np.abs(group[:, None] - others).min())


def find_offset(
    dwi: DWI,
    b0_matrices: np.ndarray,
    group: np.ndarray,
    motion: Motion,
    *,
    placed: tuple[np.ndarray, np.ndarray] | None = None,
    by_images: bool = True,
    seed: int = 0,
    n_threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the offset of one group from time and images.

    Parameters
    ----------
    dwi : DWI
    b0_matrices : (n, 4, 4) array
        Poses of the b=0 volumes in their frame.
    group : (k,) index array
        Diffusion-weighted volumes.
    motion : Motion
        Theirs, in their frame. The offsets of the fields are no motion: time does not see them.
    placed : (n,) index array and (n, 4, 4) array, optional
        Volumes and poses in the frame of the b=0 volumes that time is to join the group to; the
        b=0 volumes when not given.
    by_images : bool
        Whether images have a say; what they do not determine would pull on the rest.
    seed : int
    n_threads : int

    Returns
    -------
    offset : (4, 4) array
        b=0 frame → frame of the group.
    covariance : (6, 6) array
        Of its error.
    """
    brain = Brain.of(dwi)
    volumes, matrices = placed or (dwi.gradients.b0s, b0_matrices)
    in_time = proposals_in_time(volumes, matrices, group, motion.head, brain)
    offset, variance = most_likely_offset(in_time, brain)
    if not by_images:
        return offset, variance * np.diag(1 / brain.in_mm**2)
    which = _lowest_shell(dwi, group)
    image = offset_from_images(
        dwi,
        b0_matrices,
        group[which],
        motion.select(which),
        offset,
        seed=seed,
        n_threads=n_threads,
    )
    if image is not None:
        from_images, covariance = image
        bvals = dwi.gradients.bvals[group[which]]
        voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
        floor = (IMAGE_FLOOR_VOXELS * voxel * max(1.0, bvals.mean() / 1000.0)) ** 2
        sampling = np.trace(covariance * np.outer(brain.in_mm, brain.in_mm)) / 6
        both = _Proposals(
            np.concatenate([in_time.offsets, from_images[None]]),
            np.append(in_time.variances, IMAGE_COUNT * (floor + sampling)),
            np.append(in_time.counts, IMAGE_COUNT),
        )
        apart = log_rigid(np.linalg.inv(offset) @ from_images, brain.center)
        log.info(
            "frame of b=%.0f against b=0: time and images differ by %.2f mm, %.2f°",
            bvals.mean(), np.linalg.norm(apart[:3]), np.rad2deg(np.linalg.norm(apart[3:])),
        )  # fmt: skip
        offset, variance = most_likely_offset(both, brain)
    return offset, variance * np.diag(1 / brain.in_mm**2)


def _lowest_shell(dwi: DWI, group: np.ndarray) -> np.ndarray:
    """Positions in `group` of the volumes whose contrast is nearest to that of b=0."""
    bvals = dwi.gradients.bvals[group]
    if dwi.gradients.is_shelled:
        shells = [np.flatnonzero(np.isin(group, shell)) for shell in dwi.gradients.shells]
        shells = [shell for shell in shells if len(shell)]
        return next((shell for shell in shells if len(shell) >= ENOUGH_VOLUMES), shells[0])
    lowest = np.argsort(bvals, kind="stable")[: max(ENOUGH_VOLUMES, len(group) // 3)]
    return np.sort(lowest)


def proposals_in_time(
    b0s: np.ndarray,
    b0_matrices: np.ndarray,
    dwis: np.ndarray,
    dwi_matrices: np.ndarray,
    brain: Brain,
) -> _Proposals:
    """Pair each b=0 volume with its neighbours in time.

    Parameters
    ----------
    b0s, dwis : index arrays
        Positions in the series.
    b0_matrices, dwi_matrices : (…, 4, 4) arrays
        Poses of the b=0 volumes in their frame, and of the others in theirs.
    brain : Brain
    """
    apart = np.abs(b0s[:, None] - dwis[None])
    nearest = max(MAX_VOLUMES_APART, int(apart.min()))
    pairs = np.argwhere(apart <= nearest)
    time = apart[pairs[:, 0], pairs[:, 1]]
    offsets = np.linalg.inv(dwi_matrices[pairs[:, 1]]) @ b0_matrices[pairs[:, 0]]
    steps = _steps_of(dwis, dwi_matrices, brain)
    if len(dwis) < ENOUGH_VOLUMES:  # they hardly tell how the head rests
        steps = np.concatenate([steps, _steps_of(b0s, b0_matrices, brain)])
    variances = _quiet_step(steps, brain) ** 2 * time
    variances += (FLOOR_MM * brain.scale) ** 2
    n_pairs = np.bincount(pairs[:, 0], minlength=len(b0s))[pairs[:, 0]]
    return _Proposals(offsets, variances, np.minimum(1.0, PAIRS_A_B0 / n_pairs))


def most_likely_offset(proposals: _Proposals, brain: Brain) -> tuple[np.ndarray, float]:
    """Find the mode of the proposals, and its variance an axis (mm²; rotations at 50 mm)."""
    center, in_mm = brain.center, brain.in_mm

    def twists_from(offset: np.ndarray) -> np.ndarray:
        return log_rigid(np.linalg.inv(offset) @ proposals.offsets, center)

    def cost(offset: np.ndarray) -> float:
        squares = ((twists_from(offset) * in_mm) ** 2).sum(axis=1)
        return float((proposals.counts * np.log1p(squares / proposals.variances)).sum())

    offset = min(proposals.offsets, key=cost)
    precision = 0.0
    for _ in range(50):
        twists = twists_from(offset)
        squares = ((twists * in_mm) ** 2).sum(axis=1)
        weights = proposals.counts / (proposals.variances + squares)
        precision = weights.sum()
        step = weights @ twists / precision
        offset = offset @ exp_rigid(step, center)
        if np.linalg.norm(step * in_mm) < 1e-6 * brain.scale:
            break
    return offset, float(1 / precision)


def _steps_of(volumes: np.ndarray, matrices: np.ndarray, brain: Brain) -> np.ndarray:
    """Lengths (mm) of the steps from volume to volume, over the root of the time between them."""
    order = np.argsort(volumes, kind="stable")
    volumes, matrices = volumes[order], matrices[order]
    steps = log_rigid(np.linalg.inv(matrices[:-1]) @ matrices[1:], brain.center)
    return np.linalg.norm(steps * brain.in_mm, axis=1) / np.sqrt(np.diff(volumes))


def _quiet_step(steps: np.ndarray, brain: Brain) -> float:
    """Typical step (mm) between consecutive volumes while the head rests."""
    if not len(steps):
        return brain.scale  # nothing known: a millimetre
    return float(np.quantile(steps, QUIET_QUANTILE)) / QUIET_FACTOR


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

# SPDX-License-Identifier: Apache-2.0
"""Standard errors of the motion, once all frames are one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.estimation.equations.undetermined import AFFECTED
from eddymotion.images.pyramid import head_scale
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid, rigid_parameters, twist_millimetres
from eddymotion.robust import Z_95
from eddymotion.wording import named_volumes

log = logging.getLogger(__name__)

FEW_VOLUMES = 6
"""Fewer volumes hardly determine their frame."""

FAR_MM = 2.0
"""Distance from the nearer neighbour, in a human head, from which such a volume is reported."""


def with_standard_errors(
    motion: Motion, covariances: np.ndarray, within: np.ndarray | None, dwi: DWI
) -> Motion:
    """Give the motion its standard errors, from covariances in its frame.

    Of the volumes (N, 6, 6) and, with a trajectory, of the slices (N, Z, 6, 6).
    """
    errors = standard_errors(motion.matrices, covariances, dwi.brain_center, dwi.center)
    if motion.undetermined is not None:
        errors[:, affected_parameters(motion.undetermined, dwi)] = np.nan
    motion = replace(motion, standard_errors=errors)
    if within is None or motion.trajectory is None:
        return motion
    poses = motion.trajectory.poses(motion.matrices)
    flat = standard_errors(
        poses.reshape(-1, 4, 4), within.reshape(-1, 6, 6), dwi.brain_center, dwi.center
    )
    of_slices = flat.reshape(*poses.shape[:2], 6)
    at_rest = ~motion.trajectory.moving
    of_slices[at_rest] = errors[at_rest, None]
    course = replace(motion.trajectory, standard_errors=of_slices)
    return replace(motion, trajectory=course)


def covariances_of_few(motion: Motion, groups: Sequence[np.ndarray], dwi: DWI) -> np.ndarray:
    """Covariances of errors that few volumes in a frame do not show, (N, 6, 6).

    Three to five directions predict one another poorly, and the estimated pose of a volume may be
    far from the true one, by many of its own errors. Only the motion over time shows that. So the
    error of such a volume is at least its distance from the nearer neighbour in time.
    """
    found = np.zeros((len(motion), 6, 6))
    few = np.concatenate([np.array([], int), *(one for one in groups if len(one) < FEW_VOLUMES)])
    in_mm, limit = twist_millimetres_of(dwi), FAR_MM * head_scale(dwi.mask, dwi.voxel_sizes)
    far = []
    for volume in few.astype(int):
        beside = [other for other in (volume - 1, volume + 1) if 0 <= other < len(motion)]
        twists = log_rigid(
            np.linalg.inv(motion.head[volume]) @ motion.head[beside], dwi.brain_center
        )
        lengths = np.linalg.norm(twists * in_mm, axis=1)
        nearest = lengths.argmin()
        found[volume] = np.diag(np.square(twists[nearest] / Z_95))
        if lengths[nearest] > limit:
            far.append(volume)
    if far:
        log.warning(
            "%s: away from both neighbours in time, with too few directions at the same b-value "
            "to be certain; the standard errors are larger", named_volumes(sorted(far)),
        )  # fmt: skip
    return found


def affected_parameters(directions: np.ndarray, dwi: DWI) -> np.ndarray:
    """Which of :func:`rigid_parameters` change along directions that are not determined, (6,)."""
    in_mm = twist_millimetres_of(dwi)
    along = exp_rigid(directions / in_mm, dwi.brain_center)
    changes = np.abs(rigid_parameters(along, dwi.center)) * in_mm
    return changes.max(axis=0) > AFFECTED


def twist_millimetres_of(dwi: DWI) -> np.ndarray:
    """Millimetres for each unit of a twist (mm, rad) of this head, (6,)."""
    return twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes))


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

# SPDX-License-Identifier: Apache-2.0
"""Motion within volumes: from one pose a volume to a course of the head.

:func:`follow_head` estimates a trajectory through the volumes in which the data show motion
(:mod:`eddymotion.estimation.period_scatter`). Poses are interpolated between knots in time
(:mod:`~eddymotion.estimation.within_volumes.knots`), with a random walk with jumps as their prior
(:mod:`~eddymotion.estimation.within_volumes.increments`). All slices of all volumes determine them
together (:mod:`~eddymotion.estimation.within_volumes.equations`), in a linear system whose matrix
is never formed (:mod:`~eddymotion.estimation.within_volumes.system`), from coarse to fine
(:mod:`~eddymotion.estimation.within_volumes.solver`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.frames.gradient_pulls import remove_gradient_pulls
from eddymotion.estimation.volume_groups import VolumeGroup, groups_without
from eddymotion.estimation.within_volumes.descent import FoundCourse
from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.estimation.within_volumes.solver import MANY_MOVED, CourseSolver
from eddymotion.estimation.within_volumes.standard_errors import covariances
from eddymotion.images.pyramid import head_scale
from eddymotion.machine.parallel import Compute, one_blas_thread
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, twist_millimetres
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.models import LinearModel

log = logging.getLogger(__name__)


def follow_head(
    dwi: DWI,
    estimate: Estimate,
    motion: Motion,
    model: LinearModel,
    *,
    n_knots: int | None = None,
    compute: Compute,
) -> Estimate | None:
    """Estimate the course of the head through the volumes in which it moved.

    Parameters
    ----------
    dwi : DWI
    estimate : Estimate
        One pose a volume.
    motion : Motion
        The same in one frame.
    model : LinearModel
        Of the diffusion-weighted volumes.
    n_knots : int, optional
        Knots of every volume. When not given, volumes in which the data show motion get knots, and
        their number is chosen automatically.
    compute : Compute

    Returns
    -------
    Estimate
        One pose per volume, and a trajectory; b=0 and diffusion-weighted volumes each consistent
        among themselves. If slices were acquired in another order than stated, `estimate` with a
        doubt. None if there is no evidence of motion within volumes.
    """
    moving = _moving(dwi, estimate, n_knots)
    if not moving.any():
        return None
    groups = VolumeGroup.all_of(dwi, model, estimate.groups or [dwi.gradients.dwis])
    groups = groups_without(groups, np.flatnonzero(~_placed(estimate)))
    assert estimate.period_scatter is not None
    solver = CourseSolver(
        dwi, motion, groups, moving, estimate.period_scatter.lost, n_knots, compute
    )
    with one_blas_thread():
        order = solver.evidence_of_order()
        log.info("motion within volumes: %s", order)
        if order.doubt is not None:
            log.warning("motion within volumes: not estimated, since %s", order.doubt)
            return replace(estimate, motion=replace(estimate.motion, order_doubt=order.doubt))
        solved = solver.solve()
    return None if solved is None else _along_course(dwi, estimate, motion, groups, *solved)


def _placed(estimate: Estimate) -> np.ndarray:
    """Volumes that agree with their prediction somewhere, (N,) bool."""
    if estimate.unplaced is None:
        return np.ones(len(estimate.motion), bool)
    return ~estimate.unplaced


def _moving(dwi: DWI, estimate: Estimate, n_knots: int | None) -> np.ndarray:
    """Find the volumes within which the data show motion, (N,) bool."""
    assert estimate.period_scatter is not None
    scale = head_scale(dwi.mask, dwi.voxel_sizes)
    moving = estimate.period_scatter.moving(dwi.gradients.is_b0, scale)
    if n_knots is not None or moving[dwi.gradients.dwis].mean() > MANY_MOVED:
        moving = np.ones(len(dwi), bool)
    moving &= _placed(estimate)
    evidence = estimate.period_scatter.evidence(scale)
    log.info("motion within volumes: %s", _describe(evidence, moving, n_knots))
    return moving


def _along_course(
    dwi: DWI,
    estimate: Estimate,
    motion: Motion,
    groups: Sequence[VolumeGroup],
    knots: Knots,
    found: FoundCourse,
) -> Estimate:
    """Return the estimate with the poses of slices along a course."""
    scatter, slicing = estimate.period_scatter, dwi.acquisition.slicing
    assert scatter is not None
    assert estimate.covariances is not None
    poses, eddy = exp_rigid(knots.of_slices(found.twists), dwi.brain_center), motion.eddy_currents
    poses = poses if eddy is None else eddy.shifts[:, None] @ poses
    of_slices = covariances(knots, found, groups)
    once = np.array([group[0] for group in slicing.groups])
    matrices, trajectory = Trajectory.of_poses(
        poses, dwi.brain_center, dwi.affine, slicing.axis, once=once
    )
    known = np.isfinite(estimate.covariances).all(axis=(1, 2))
    more = np.where(knots.moving, found.discord, 1.0)[:, None, None]
    of_volumes = more * (of_slices[0] + scatter.at_rest)
    without = remove_gradient_pulls(
        replace(motion, matrices=matrices, trajectory=trajectory),
        of_volumes,
        dwi.gradients,
        [group.volumes for group in groups],
        dwi.brain_center,
        twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes)),
    )
    of_volumes = of_volumes + without.not_determined
    return replace(
        estimate,
        motion=without.motion,
        covariances=of_volumes + np.where(known[:, None, None], 0.0, np.nan),
        within=more[:, None] * (of_slices[1] + scatter.at_rest[:, None])
        + without.not_determined[:, None],
        removed=without.removed,
    )


def _describe(evidence: np.ndarray, moving: np.ndarray, n_knots: int | None) -> str:
    """Say why motion within volumes is estimated, or not."""
    if n_knots is not None:
        return f"{n_knots} knots in every volume, as asked for"
    most = int(np.argmax(evidence))
    of_all = (
        f"parts of volume {most} pull apart by {evidence[most]:.1f} times what noise and misfit do"
    )
    if not moving.any():
        return f"no evidence, one pose a volume ({of_all})"
    return f"{int(moving.sum())} of {len(moving)} volumes ({of_all})"

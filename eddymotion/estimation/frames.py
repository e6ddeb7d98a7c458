"""b=0 and diffusion-weighted volumes into one frame.

The loop aligns volumes of like contrast to each other. What remains unknown is one rigid offset
``M`` between the frame of a diffusion-weighted group and that of the b=0 volumes. Images of such
different contrast say little about it, time says a lot: between two consecutive volumes a head
mostly rests. Every b=0 volume ``k`` and diffusion-weighted volume ``j`` close in time propose ::

    M_kj = T_j⁻¹ T_k        (exact if the head did not move between k and j)

and a robust mode of the proposals is taken: Student-t with a scale that grows with the time
between the two, so that a jump between some of them does no harm as long as others agree.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.geometry import Motion, exp_rigid, log_rigid

log = logging.getLogger(__name__)

MAX_VOLUMES_APART = 4
FLOOR_MM = 0.03
"""Scale of proposals at zero time: the precision of the alignment within the groups."""

QUIET_QUANTILE, QUIET_FACTOR = 0.15, 0.67
"""The scale of rest: this quantile of the steps between consecutive volumes over this factor,
so that even a head that moves half of the time is judged by its quiet moments."""

ROTATION_RADIUS_MM = 50.0
"""Millimetres for a radian, where rotations and translations are compared."""


def unite_frames(
    dwi: DWI,
    motion: Motion,
    *,
    groups: Sequence[np.ndarray] | None = None,
    align_shells: bool = True,
) -> Motion:
    """Express the motion in the frame of the first b=0 volume.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
        From the loop: b=0 and diffusion-weighted volumes each consistent among themselves.
    groups : sequence of index arrays, optional
        Diffusion-weighted volumes that share a frame; all of them when not given.
    align_shells : bool
        Whether to estimate the offset of each group; otherwise it is taken as none.

    Returns
    -------
    Motion
        The identity for the reference volume: the first b=0, or volume 0 of a series without.
    """
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    if not len(b0s):
        log.warning("no b=0 volume: the reference frame is that of volume 0")
        return motion.relative_to(0)
    to_reference = np.linalg.inv(motion[dwi.reference])
    b0_matrices = motion.matrices[b0s] @ to_reference
    united = motion.updated(b0s, b0_matrices)
    for group in [dwis] if groups is None else groups:
        matrices = motion.matrices[group]
        if align_shells:
            offset = offset_from_time(b0s, b0_matrices, group, matrices, dwi.brain_center)
        else:
            offset = to_reference
        united = united.updated(group, matrices @ offset)
    return united


def offset_from_time(
    b0s: np.ndarray,
    b0_matrices: np.ndarray,
    dwis: np.ndarray,
    dwi_matrices: np.ndarray,
    center: np.ndarray,
) -> np.ndarray:
    """Find the frame offset that lets the head move least between neighbours in time.

    Parameters
    ----------
    b0s, dwis : index arrays
        Positions in the series.
    b0_matrices, dwi_matrices : (…, 4, 4) arrays
        Poses of the b=0 volumes in their frame, and of the others in theirs.
    center : (3,) array
        Centre of the brain, RAS+ mm.

    Returns
    -------
    (4, 4) array
        b=0 frame → frame of the diffusion-weighted volumes.
    """
    apart = np.abs(b0s[:, None] - dwis[None])
    nearest = max(MAX_VOLUMES_APART, int(apart.min()))
    pairs = np.argwhere(apart <= nearest)
    time = apart[pairs[:, 0], pairs[:, 1]]
    proposals = np.linalg.inv(dwi_matrices[pairs[:, 1]]) @ b0_matrices[pairs[:, 0]]
    variance = _quiet_step(dwis, dwi_matrices, center) ** 2 * time + FLOOR_MM**2

    def distances(offset: np.ndarray) -> np.ndarray:
        return np.linalg.norm(_in_mm(log_rigid(np.linalg.inv(offset) @ proposals, center)), axis=1)

    costs = [np.log1p(distances(proposal) ** 2 / variance).sum() for proposal in proposals]
    offset = proposals[int(np.argmin(costs))]
    for _ in range(50):
        twists = log_rigid(np.linalg.inv(offset) @ proposals, center)
        weights = 1 / (variance + (_in_mm(twists) ** 2).sum(axis=1))
        step = weights @ twists / weights.sum()
        offset = offset @ exp_rigid(step, center)
        if np.linalg.norm(_in_mm(step[None])) < 1e-6:
            break
    log.debug("frame offset from %d pairs: %s", len(pairs), log_rigid(offset, center))
    return offset


def _quiet_step(dwis: np.ndarray, matrices: np.ndarray, center: np.ndarray) -> float:
    """Typical step (mm) between consecutive volumes while the head rests."""
    steps = log_rigid(np.linalg.inv(matrices[:-1]) @ matrices[1:], center)
    if not len(steps):
        return 1.0  # nothing known: a millimetre
    lengths = np.linalg.norm(_in_mm(steps), axis=1) / np.sqrt(np.diff(dwis))
    return float(np.quantile(lengths, QUIET_QUANTILE)) / QUIET_FACTOR


def _in_mm(twists: np.ndarray) -> np.ndarray:
    return twists * np.array([1.0] * 3 + [ROTATION_RADIUS_MM] * 3)

# SPDX-License-Identifier: Apache-2.0
"""What an estimator finds before the frames are joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.period_scatter import PeriodScatter
from eddymotion.machine.frozen import selected
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.models import AverageModel, Model
from eddymotion.wording import named_volumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Poses within groups, and how certain they are.

    Parameters
    ----------
    motion : Motion
        b=0 volumes and each diffusion-weighted group consistent among themselves.
    covariances : (N, 6, 6) array, optional
        Of the error ``δ`` in ``T = T̂ exp(δ)``, translation (mm) and rotation (rad) about the
        centre of the brain; NaN where not known.
    groups : sequence of index arrays, optional
        Diffusion-weighted volumes that share a frame: several groups, or the shells of a model of
        means, even if it is a single one. All of these volumes share a frame when not given.
    unplaced : (N,) bool array, optional
        Volumes that agree with their prediction nowhere.
    undetermined : (k, 6) array, optional
        Directions that the images do not show, as in :class:`~eddymotion.mapping.motion.Motion`.
    period_scatter : PeriodScatter, optional
        How far the parts of each volume's time pull its pose apart.
    within : (N, Z, 6, 6) array, optional
        Covariances as `covariances`, of the pose of each slice.
    common_motion : (N, 6, 6) array, optional
        Covariance of motion that all volumes of a group share, since the head follows the
        gradients; see
        :func:`~eddymotion.estimation.frames.gradient_pulls.remove_gradient_pulls`.
    removed : (N, 6) array, optional
        Twists (mm, rad) after the poses that were removed from them there.
    a_radian : (3,) array, optional
        By how much an off-resonance field seems to change with the tilt of the head: mm a radian,
        along the phase encoding.
    """

    motion: Motion
    covariances: np.ndarray | None = None
    groups: Sequence[np.ndarray] | None = None
    unplaced: np.ndarray | None = None
    undetermined: np.ndarray | None = None
    period_scatter: PeriodScatter | None = None
    within: np.ndarray | None = None
    common_motion: np.ndarray | None = None
    removed: np.ndarray | None = None
    a_radian: np.ndarray | None = None

    def common_motion_of(self, group: np.ndarray) -> np.ndarray | None:
        """Covariance (6, 6) of the motion that a group shares; None if there is none."""
        if self.common_motion is None or not self.common_motion[group].any():
            return None
        return self.common_motion[group].mean(axis=0)

    def select(self, volumes: np.ndarray) -> Estimate:
        """Keep some of the volumes."""
        new = {int(old): number for number, old in enumerate(volumes)}
        groups = self.groups and [
            np.array([new[old] for old in group.tolist() if old in new], int)
            for group in self.groups
        ]
        groups = groups and [group for group in groups if len(group)]
        return selected(
            replace(self, groups=groups, unplaced=None, period_scatter=None),
            volumes, "motion", "covariances", "within", "common_motion", "removed",
        )  # fmt: skip


def nearest_in_time(volumes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the nearest of others (n,) for each of some volumes, the earlier of two: (k,)."""
    return others[np.abs(volumes[:, None] - others).argmin(axis=1)]


def fill_unpredicted(
    dwi: DWI,
    motion: Motion,
    known: np.ndarray,
    model: Model | None = None,
    *,
    groups: Sequence[np.ndarray] | None = None,
    unplaced: np.ndarray | None = None,
) -> Motion:
    """Give volumes that nothing predicts, or that fit nowhere, the pose of a neighbour in time.

    A b=0 volume without another keeps its own: the frame of the others is joined to it later.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
    known : (N,) bool array
        Volumes that were predicted and placed.
    model : Model, optional
        What was to predict them: another one is advised where it predicts none.
    groups : sequence of index arrays, optional
        Diffusion-weighted volumes that share a frame: poses come from there if they can.
    unplaced : (N,) bool array, optional
        Volumes that fit nowhere.

    Raises
    ------
    EddymotionError
        If the model predicts no diffusion-weighted volume at all.
    """
    b0s, dwis = dwi.gradients.b0s, dwi.gradients.dwis
    if not known[dwis].any():
        raise EddymotionError(
            f"{dwi.source or dwi}: the model predicts no diffusion-weighted volume from the "
            f"others; {_advice(dwi, model)}"
        )
    lost = np.zeros(len(dwi), bool) if unplaced is None else unplaced
    unpredicted: list[int] = []
    for group in (b0s, *(groups or [dwis])):
        missing = group[~known[group]]
        found = group[known[group]]
        if not len(found) and group is not b0s:
            found = dwis[known[dwis]]
        if len(missing) and len(found):
            there = motion.matrices[nearest_in_time(missing, found)]
            motion = motion.updated(missing, there)
            unpredicted += missing[~lost[missing]].tolist()
    if lost.any():
        log.warning(
            "%s: could not be placed, since neither the estimated pose nor that of the "
            "neighbours in time agrees with the prediction; the pose of the neighbours is given",
            named_volumes(np.flatnonzero(lost)),
        )
    if unpredicted:
        log.warning(
            "%s: cannot be predicted from the others; the pose of the nearest volume that can "
            "is given", named_volumes(sorted(unpredicted)),
        )  # fmt: skip
    return motion


def _advice(dwi: DWI, model: Model | None) -> str:
    """Say what might predict volumes that a model does not."""
    if getattr(model, "min_q_distance", 0.0) > 0:
        return "use a smaller --min-q-distance"
    if all(len(shell) < 2 for shell in dwi.gradients.shells):
        return (
            f"{len(dwi.gradients.dwis)} of them, no two with the same b-value, are too few: "
            "register them with eddymotion-register"
        )
    return "use --model gp" if isinstance(model, AverageModel) else "use --model average"


def with_larger_errors(
    motion: Motion, center: np.ndarray, *, lost: float = 0.0, factor: float = 1.0
) -> Motion:
    """Enlarge the standard errors of a series that shows less of the motion than there was.

    Parameters
    ----------
    motion : Motion
    center : (3,) array
        Where the standard errors are measured, RAS+ mm.
    lost : float
        Part of the motion that may be missing: of how far each volume is from the usual pose.
    factor : float
        On the errors that were found.
    """
    if motion.standard_errors is None:
        return motion
    parameters = rigid_parameters(motion.matrices, center)
    away = parameters - np.median(parameters, axis=0)
    errors = np.hypot(factor * motion.standard_errors, lost * away)
    errors[(motion.standard_errors == 0).all(axis=1)] = 0.0  # the reference itself
    return replace(motion, standard_errors=errors)

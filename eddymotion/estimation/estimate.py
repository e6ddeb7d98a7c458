# SPDX-License-Identifier: Apache-2.0
"""What an estimator finds before the frames are joined."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.errors import EddymotionError
from eddymotion.geometry import Motion, rigid_parameters

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
    """

    motion: Motion
    covariances: np.ndarray | None = None


def fill_unpredicted(dwi: DWI, motion: Motion, known: np.ndarray) -> Motion:
    """Give diffusion-weighted volumes that nothing predicts the pose of their neighbour in time.

    Raises
    ------
    EddymotionError
        If the model predicts none at all.
    """
    dwis = dwi.gradients.dwis
    found = dwis[known[dwis]]
    if not len(found):
        raise EddymotionError(
            f"{dwi!r}: the model predicts no diffusion-weighted volume from the others; "
            "use --model average, or a smaller --min-q-distance"
        )
    missing = dwis[~known[dwis]]
    if not len(missing):
        return motion
    nearest = found[np.abs(found[None] - missing[:, None]).argmin(axis=1)]
    log.warning(
        "volumes %s: not predicted by the others; they get the pose of the nearest volume that is",
        ", ".join(map(str, missing)),
    )
    return motion.updated(missing, motion.matrices[nearest])


def with_larger_errors(
    motion: Motion, center: np.ndarray, *, lost: float = 0.0, factor: float = 1.0
) -> Motion:
    """Let the standard errors tell that a series shows less of the motion than there was.

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

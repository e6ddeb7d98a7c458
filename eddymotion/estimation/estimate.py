# SPDX-License-Identifier: Apache-2.0
"""What an estimator finds before the frames are joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.errors import EddymotionError
from eddymotion.geometry import Motion

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
        Diffusion-weighted volumes that share a frame, where not all of them do.
    """

    motion: Motion
    covariances: np.ndarray | None = None
    groups: Sequence[np.ndarray] | None = None


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

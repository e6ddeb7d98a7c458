# SPDX-License-Identifier: Apache-2.0
"""What an estimator finds before the frames are joined."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.errors import EddymotionError
from eddymotion.geometry import Motion
from eddymotion.models import AverageModel, Model

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


def fill_unpredicted(
    dwi: DWI, motion: Motion, known: np.ndarray, model: Model | None = None
) -> Motion:
    """Give diffusion-weighted volumes that nothing predicts the pose of their neighbour in time.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
    known : (N,) bool array
        Which volumes the others predict.
    model : Model, optional
        What was to predict them: another one is advised.

    Raises
    ------
    EddymotionError
        If the model predicts none at all.
    """
    dwis = dwi.gradients.dwis
    found = dwis[known[dwis]]
    if not len(found):
        raise EddymotionError(
            f"{dwi.source or dwi}: the model predicts no diffusion-weighted volume from the "
            f"others; {_advice(dwi, model)}"
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


def _advice(dwi: DWI, model: Model | None) -> str:
    """Say what might predict volumes that a model does not."""
    if getattr(model, "min_q_distance", 0.0) > 0:
        return "use a smaller --min-q-distance"
    if all(len(shell) < 2 for shell in dwi.gradients.shells):
        return (
            f"it has {len(dwi.gradients.dwis)} of them and no two of one b-value, which is too "
            "few: register them with eddymotion-register"
        )
    return "use --model gp" if isinstance(model, AverageModel) else "use --model average"

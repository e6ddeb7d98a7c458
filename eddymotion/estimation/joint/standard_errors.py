# SPDX-License-Identifier: Apache-2.0
"""Standard errors of poses beyond those of noise."""

from __future__ import annotations

import numpy as np

from eddymotion.data.series import DWI
from eddymotion.images.pyramid import head_scale
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM

HALVES_FACTOR = 1.35
"""Standard errors over the scatter between halves of the brain: see
:func:`excess_covariance`. On ten simulated heads at b=1000 the errors were 0.8 to 1.5 times the
scatter, of which steps that are too short explain 1.3; where they are shorter, that counts."""

MISFIT_MM, MISFIT_FEW, MISFIT_B_POWER = 0.0125, 8.0, 0.9
"""Standard error beyond that of noise; see :func:`misfit_covariances`."""


def misfit_covariances(dwi: DWI, volumes: np.ndarray) -> np.ndarray:
    """Covariance of what the model gets wrong alike all over the brain, (n, 6, 6), of `volumes`.

    The scatter between blocks does not show it. On simulated series the errors were 1.4 (64
    directions at b=1000) to 4 times (b=3000, 12 directions, random q-space) what the blocks say.
    The rest was about alike in millimetres for voxels of 1.2 to 4 mm, and, with ``n`` volumes,
    close to ``MISFIT_MM (1 + MISFIT_FEW / n) max(1, b / 1000)^MISFIT_B_POWER`` an axis (rotations
    at 50 mm), for a human head. b=0 volumes are predicted by a mean, which takes no directions:
    theirs is ``MISFIT_MM`` alone. Without it 25 to 75 % of their intervals held the truth.
    """
    bvals = dwi.gradients.bvals[volumes]
    scale = head_scale(dwi.mask, dwi.voxel_sizes)
    few = MISFIT_FEW / max(len(bvals), 1)
    size = MISFIT_MM * scale * np.where(dwi.gradients.is_b0[volumes], 1.0, 1 + few)
    size = size * np.maximum(1.0, bvals / 1000.0) ** MISFIT_B_POWER
    in_mm = np.array([1.0] * 3 + [ROTATION_RADIUS_MM * scale] * 3)
    return size[:, None, None] ** 2 * np.diag(1 / in_mm**2)


def excess_covariance(covariances: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """Return what the scatter between halves of the brain shows beyond covariances, (6, 6).

    Parameters
    ----------
    covariances : (N, 6, 6) array
        Of the poses of a group.
    scatter : (6,) array
        From :meth:`~eddymotion.estimation.solution.Solution.scatter_of_halves`, times the
        square of a factor: :data:`HALVES_FACTOR`, or by how much steps are too short.
    """
    variances = np.diagonal(covariances, axis1=1, axis2=2).mean(axis=0)
    return np.diag(np.maximum(np.nan_to_num(scatter - variances), 0.0))


def pulled_by_slices(covariances: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """Return what thick slices pull the poses by, beyond noise, (N, 6, 6).

    Parameters
    ----------
    covariances : (N, 6, 6) array
        Of the poses of a group, by noise alone.
    pulls : (N, 6) array
        Steps that a filter as narrow along the slices as in them asks for. They are as large as
        what it leaves to be found or larger: with voxels of 2×2×6 mm that filter lacked 7 to 25 %
        of pitch, roll and shifts through the slices, the wider one 2 to 11 %, and with 2.5×2.5×7.5
        mm and a head of sharp edges 63 and 29 %.
    """
    beyond = pulls**2 - np.einsum("nkk->nk", covariances)
    return np.maximum(np.nan_to_num(beyond), 0.0)[:, :, None] * np.eye(6)

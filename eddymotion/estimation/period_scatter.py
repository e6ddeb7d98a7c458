# SPDX-License-Identifier: Apache-2.0
"""Whether the head moved within volumes: how far the parts of a volume's time pull apart.

Each of a few parts of the time of a volume has slices of its own, and would move the pose of the
volume by itself (:meth:`~eddymotion.estimation.equations.solution.Solution.scatter_of_periods`).
Noise and errors of the model, which differ from place to place, pull the parts apart a little; a
head that moved does so by far more. One volume beyond both is evidence of motion within volumes.
Then others of the series are taken to have moved as soon as they are beyond noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.mapping.rigid import twist_millimetres
from eddymotion.wording import short_repr

BEYOND_MISFIT = 4.0
"""Mean square by which parts pull apart, over that of noise and misfit, that shows motion. On real
and simulated series without it reached 2.9."""

BEYOND_NOISE = 2.5
"""The same over that of noise alone, for further volumes. Simulated volumes at rest, in series
with motion, reached 2.0."""

B0_BEYOND_NOISE, B0_BEYOND_MM = 4.0, 0.02
"""For b=0 volumes, whose noise is small: the effect of the motion of others on them reached 9, and
0.03 mm."""


@dataclass(frozen=True, eq=False)
class PeriodScatter:
    """How far the parts of each volume's time pull its pose apart.

    Parameters
    ----------
    at_rest : (N, 6, 6) array
        Covariances of the poses for a head at rest within volumes.
    apart : (N, 6, 6) array
        Covariances of the poses by the scatter between parts of the time; NaN where not known.
    by_noise, by_misfit : (N, 6, 6) array
        The parts of noise, and of what the model gets wrong, in both.
    lost : (N, Z) bool array
        Slices that lost signal.
    """

    at_rest: np.ndarray
    apart: np.ndarray
    by_noise: np.ndarray
    by_misfit: np.ndarray
    lost: np.ndarray

    __repr__ = short_repr

    def evidence(self, scale: float) -> np.ndarray:
        """Mean square of the parts over that of noise and misfit, (N,); zero where not known.

        Parameters
        ----------
        scale : float
            Size of the head relative to a human one.
        """
        expected = _square(self.by_noise, scale) + _square(self.by_misfit, scale)
        return np.nan_to_num(_square(self.apart, scale) / np.maximum(expected, 1e-12))

    def moving(self, is_b0: np.ndarray, scale: float) -> np.ndarray:
        """Find the volumes within which the head moved, (N,) bool; none without evidence.

        Parameters
        ----------
        is_b0 : (N,) bool array
        scale : float
            Size of the head relative to a human one.
        """
        if not (self.evidence(scale) > BEYOND_MISFIT).any():
            return np.zeros(len(is_b0), bool)
        apart, noise = _square(self.apart, scale), _square(self.by_noise, scale)
        beyond = np.nan_to_num(apart / np.maximum(noise, 1e-12))
        far = np.sqrt(np.maximum(np.nan_to_num(apart - noise), 0.0)) > B0_BEYOND_MM * scale
        return np.where(is_b0, (beyond > B0_BEYOND_NOISE) & far, beyond > BEYOND_NOISE)


def _square(covariances: np.ndarray, scale: float) -> np.ndarray:
    """Sum of the variances, rotations at 50 mm for a human head, mm²: (N,)."""
    in_mm = twist_millimetres(scale)
    return np.einsum("nkk,k->n", covariances, in_mm**2)

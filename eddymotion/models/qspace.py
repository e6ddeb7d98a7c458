# SPDX-License-Identifier: Apache-2.0
"""Covariance in q-space, for schemes without shells: DSI, random and compressed sensing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.models.covariance import Covariance


@dataclass(frozen=True)
class MaternCovariance(Covariance):
    """Matérn covariance (ν = 3/2) of positions in q-space and their antipodes.

    ``q = g √(b / 1000 s/mm²)``; what deviates from the mean fades with the b-value::

        K_ij = v [M(|q_i − q_j|) + M(|q_i + q_j|)] exp(−ρ (b_i + b_j) / 1000)
        M(d) = (1 + √3 d/ℓ) exp(−√3 d/ℓ)

    (Rasmussen & Williams 2006, eq. 4.17.)

    Parameters
    ----------
    signal : float
        ``v``: signal variance at the origin over noise variance.
    length : float
        ``ℓ``: distance in q-space over which signals resemble each other.
    decay : float
        ``ρ``: fading, per 1000 s/mm².
    """

    signal: float = 20.0
    length: float = 1.0
    decay: float = 0.2

    def theta(self, gradients: Gradients) -> np.ndarray:
        """Logarithms of signal and length; decay as it is."""
        return np.array([np.log(self.signal), np.log(self.length), self.decay])

    def replaced(self, theta: np.ndarray) -> MaternCovariance:
        """Invert :meth:`theta`."""
        return MaternCovariance(float(np.exp(theta[0])), float(np.exp(theta[1])), float(theta[2]))

    def bounds(self, gradients: Gradients) -> list[tuple[float, float]]:
        """Return the bounds of :meth:`theta`."""
        return [(-9.0, 12.0), (np.log(0.05), np.log(20.0)), (-1.0, 3.0)]

    def matrix(self, gradients: Gradients) -> np.ndarray:
        """Return ``K_θ``, (N, N)."""
        return self._parts(gradients)[0]

    def derivatives(self, gradients: Gradients) -> np.ndarray:
        """Return ``∂K_θ/∂θ``, (p, N, N)."""
        matrix, by_length = self._parts(gradients)
        b = gradients.bvals / 1000.0
        return np.array([matrix, by_length, -matrix * (b[:, None] + b)])

    def _parts(self, gradients: Gradients) -> tuple[np.ndarray, np.ndarray]:
        """``K_θ`` and its derivative by ``ln ℓ``."""
        q, dwi = gradients.qvecs, ~gradients.is_b0
        fading = np.exp(-self.decay * gradients.bvals / 1000.0) * dwi
        scale = self.signal * np.outer(fading, fading)
        matrix, slope = np.zeros_like(scale), np.zeros_like(scale)
        for sign in (1, -1):
            apart = np.linalg.norm(q[:, None] - sign * q, axis=2)
            ratio = np.sqrt(3) * apart / self.length
            matrix += (1 + ratio) * np.exp(-ratio)
            slope += ratio**2 * np.exp(-ratio)
        return scale * matrix, scale * slope

# SPDX-License-Identifier: Apache-2.0
"""Covariances of the volumes of a voxel, and how their parameters follow from the data.

A covariance has the form ``s² (K_θ + I)``: a signal part ``K_θ``, in units of the noise variance,
and white noise. With a mean ``Xβ`` that is free (a flat prior), ``θ`` is found by restricted
maximum likelihood (Patterson & Thompson 1971). All that it needs of the voxels is their scatter
``S = Σ yyᵀ / V``; with ``s²`` profiled out, ``K = K_θ + I`` and ``P`` as in
:mod:`eddymotion.models.base`::

    f(θ)   = (N − q) ln tr(PS) + ln|K| + ln|XᵀK⁻¹X|  → min
    ∂f/∂θₖ = tr[(P − (N − q) PSP / tr(PS)) ∂K/∂θₖ]
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from eddymotion.data.gradients import Gradients

log = logging.getLogger(__name__)

UNLIKELY = 1e12
"""What the fit is told of parameters that give no positive definite covariance."""

_SPHERE_ANGLES = (np.arange(2000) + 0.5) * np.pi / 4000  # 0 … 90°, for averages over directions


class Covariance(ABC):
    """Signal part of the covariance of the volumes, in units of the noise variance.

    b=0 volumes have none: their rows and columns are zero. Parameters are given to the optimiser
    as ``θ``, without bounds other than those of :meth:`bounds`.
    """

    @abstractmethod
    def theta(self, gradients: Gradients) -> np.ndarray:
        """Return the parameters that a scheme determines, (p,)."""

    @abstractmethod
    def replaced(self, theta: np.ndarray) -> Self:
        """Return a copy with the parameters that :meth:`theta` gave."""

    @abstractmethod
    def bounds(self, gradients: Gradients) -> list[tuple[float, float]]:
        """Return the least and the largest of each parameter."""

    @abstractmethod
    def matrix(self, gradients: Gradients) -> np.ndarray:
        """Return ``K_θ``, (N, N)."""

    @abstractmethod
    def derivatives(self, gradients: Gradients) -> np.ndarray:
        """Return ``∂K_θ/∂θ``, (p, N, N)."""

    def refined(self, scatter: np.ndarray, gradients: Gradients, design: np.ndarray) -> Covariance:
        """Return what more the scatter tells once ``θ`` is fitted; by default nothing."""
        return self


@dataclass(frozen=True)
class SphericalCovariance(Covariance):
    """The covariance of Andersson & Sotiropoulos (2015, NeuroImage 122:166).

    Signals along two directions resemble each other the more, the smaller the angle ``φ`` between
    them, and the less, the further apart their b-values::

        K_ij = v C(φ_ij) exp(−(ln b_i − ln b_j)² / 2ℓ²)
        C(φ) = 1 − 3φ/2a + φ³/2a³   for φ ≤ a, else 0

    Parameters
    ----------
    signal : float
        ``v``: signal variance over noise variance.
    angle : float
        ``a``: the angle (rad) beyond which signals are unrelated; at most π/2 is reached, since
        directions are axes.
    b_scale : float
        ``ℓ``: how far apart, in ``ln b``, shells still resemble each other.
    """

    signal: float = 20.0
    angle: float = 1.2
    b_scale: float = 0.6

    def theta(self, gradients: Gradients) -> np.ndarray:
        """Logarithms of signal, angle and, with several shells, b_scale."""
        values = [self.signal, self.angle, self.b_scale]
        return np.log(values[: 3 if len(gradients.shells) > 1 else 2])

    def replaced(self, theta: np.ndarray) -> SphericalCovariance:
        """Invert :meth:`theta`."""
        names = ("signal", "angle", "b_scale")
        return replace(self, **dict(zip(names, np.exp(theta), strict=False)))

    def bounds(self, gradients: Gradients) -> list[tuple[float, float]]:
        """Return the logarithms of the bounds."""
        limits = np.log([(1e-4, 1e6), (0.05, 10.0), (0.05, 10.0)])
        return [tuple(pair) for pair in limits[: len(self.theta(gradients))]]

    def matrix(self, gradients: Gradients) -> np.ndarray:
        """Return ``K_θ``, (N, N)."""
        similarity, _ = self._similarity(gradients)
        return self.signal * similarity * across_shells(gradients, self.b_scale)

    def derivatives(self, gradients: Gradients) -> np.ndarray:
        """Return ``∂K_θ/∂θ``, (p, N, N)."""
        similarity, slope = self._similarity(gradients)
        across = self.signal * across_shells(gradients, self.b_scale)
        matrix = across * similarity
        all_three = [matrix, across * slope, matrix * log_b_distance(gradients) / self.b_scale**2]
        return np.array(all_three[: len(self.theta(gradients))])

    def _similarity(self, gradients: Gradients) -> tuple[np.ndarray, np.ndarray]:
        """``C`` of all pairs and its derivative by ``ln a``."""
        cosines = np.abs(gradients.bvecs @ gradients.bvecs.T)
        angles = np.arccos(np.clip(cosines, 0, 1))
        pair = np.array(spherical(angles, self.angle))
        trace = gradients.is_trace
        if trace.any():  # a mean over directions resembles each equally
            weights = np.sin(_SPHERE_ANGLES) / np.sin(_SPHERE_ANGLES).sum()
            mean = np.array(spherical(_SPHERE_ANGLES, self.angle)) @ weights
            pair[:, trace] = mean[:, None, None]
            pair[:, :, trace] = mean[:, None, None]
        return pair[0], pair[1]


def spherical(angles: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Spherical covariance: one at zero, zero from `reach` on; and its derivative by ln(reach)."""
    ratio = np.minimum(angles / reach, 1.0)
    return 1 - 1.5 * ratio + 0.5 * ratio**3, 1.5 * (ratio - ratio**3)


def log_b_distance(gradients: Gradients) -> np.ndarray:
    """``(ln b_i − ln b_j)²`` of diffusion-weighted volumes, (N, N)."""
    log_b = np.log(np.where(gradients.is_b0, 1.0, gradients.bvals))
    return (log_b[:, None] - log_b) ** 2


def across_shells(gradients: Gradients, b_scale: float) -> np.ndarray:
    """How much volumes of two b-values resemble each other; zero for b=0, (N, N)."""
    dwi = ~gradients.is_b0
    return np.outer(dwi, dwi) * np.exp(-log_b_distance(gradients) / (2 * b_scale**2))


def fit_covariance(
    covariance: Covariance, scatter: np.ndarray, gradients: Gradients, design: np.ndarray
) -> Covariance:
    """Find the most likely parameters, starting from those of `covariance`.

    Parameters
    ----------
    covariance : Covariance
    scatter : (N, N) array
        ``Σ yyᵀ / V`` over voxels.
    gradients : Gradients
    design : (N, q) array
        ``X`` of the mean.
    """
    from scipy.optimize import minimize

    if len(scatter) - design.shape[1] < 2 or not np.trace(scatter) > 0:
        return covariance  # nothing to learn from

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        candidate = covariance.replaced(theta)
        K = candidate.matrix(gradients) + np.eye(len(scatter))
        try:
            value, slope = restricted_likelihood(scatter, K, design)
        except np.linalg.LinAlgError:  # no covariance of these directions, or not to rounding
            return UNLIKELY, np.zeros_like(theta)
        return value, np.tensordot(candidate.derivatives(gradients), slope, axes=2)

    start = covariance.theta(gradients)
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=covariance.bounds(gradients),
        options={"maxiter": 200, "ftol": 1e-9, "gtol": 1e-4},
    )  # fmt: skip
    fitted = covariance.replaced(found.x)
    log.debug("%s after %d evaluations", fitted, found.nfev)
    return fitted.refined(scatter, gradients, design)


def restricted_likelihood(
    scatter: np.ndarray, K: np.ndarray, X: np.ndarray
) -> tuple[float, np.ndarray]:
    """−2 × restricted log-likelihood a voxel, the variance profiled out, and its slope.

    Parameters
    ----------
    scatter : (N, N) array
        ``Σ yyᵀ / V`` over voxels.
    K : (N, N) array
        Covariance up to scale.
    X : (N, q) array
        Design of the mean.

    Returns
    -------
    value : float
    slope : (N, N) array
        Derivative by the entries of `K`: the sum of its product with ``∂K/∂θ`` is ``∂f/∂θ``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If `K` is not positive definite.
    """
    factor = np.linalg.cholesky(K)
    half = np.linalg.solve(factor, np.eye(len(K)))
    inverse = half.T @ half
    weighted = inverse @ X
    information = X.T @ weighted
    precision = inverse - weighted @ np.linalg.solve(information, weighted.T)
    filtered = precision @ scatter
    misfit = max(np.trace(filtered), np.finfo(float).tiny)
    n_free = len(K) - X.shape[1]
    value = n_free * np.log(misfit) + 2 * np.log(np.diag(factor)).sum()
    value += np.linalg.slogdet(information)[1]
    return float(value), precision - n_free / misfit * (filtered @ precision)

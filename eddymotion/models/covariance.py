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
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.models.base import inverse_from

log = logging.getLogger(__name__)

FIRST_DAMPING, MOST_DAMPING, MOST_TRIALS = 1e-3, 1e6, 60
"""Of the steps to the most likely parameters; how many are tried."""

LONGEST_STEP = 2.0
"""Of a logarithm, in one step."""

MOST_SIGNAL = 30.0
"""Largest variance of the signal over that of the noise. No two of a few directions are near
enough to distinguish the noise from what is fine in the signal: in six of ten real series the
likelihood went on rising by 0.003 a voxel from a ratio of 30 to 10⁵. Predictions are the same
there, but a signal that is thought to have no noise has the slopes of its noise, so that steps are
too short. With 30 directions or more the ratio was less, except for images without any noise."""

SETTLED = 1e-6
"""What a step is to gain of −2 × log-likelihood a voxel when it is not taken any more: a fiftieth
of 20,000 voxels together, where one is a chance."""

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
        """Return the further term of the scatter once ``θ`` is fitted; by default nothing."""
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
        limits = np.log([(1e-4, MOST_SIGNAL), (0.05, 10.0), (0.05, 10.0)])
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
    if len(scatter) - design.shape[1] < 2 or not np.trace(scatter) > 0:
        return covariance  # nothing to learn from
    low, high = np.array(covariance.bounds(gradients)).T
    here = _Scored.of(covariance, covariance.theta(gradients), scatter, gradients, design)
    damping, n_tried = FIRST_DAMPING, 1
    while here is not None and damping < MOST_DAMPING and n_tried < MOST_TRIALS:
        step = here.step(low, high, damping)
        gain = -float(here.slope @ step)
        if 0 <= gain < SETTLED:
            break
        there = None
        if gain > 0:  # bounds may have turned it
            there = _Scored.of(covariance, here.theta + step, scatter, gradients, design)
            n_tried += 1
        better = there is not None and there.value < here.value
        here, damping = (there, damping / 10) if better else (here, 10 * damping)
    fitted = covariance if here is None else covariance.replaced(here.theta)
    log.debug("%s after %d evaluations", fitted, n_tried)
    return fitted.refined(scatter, gradients, design)


@dataclass(frozen=True, eq=False)
class _Scored:
    """The restricted likelihood at some parameters, and where it falls.

    The information that the data hold of the parameters is, with ``A_k = P ∂K/∂θ_k``::

        F_kl = tr(A_k A_l) − tr(A_k) tr(A_l) / (N − q)

    It is the mean of the second derivatives of ``f``: a step ``−F⁻¹ ∂f/∂θ`` (Fisher scoring,
    damped as by Levenberg and Marquardt) needs a third of the evaluations that one takes which
    learns them on its way.

    Parameters
    ----------
    theta : (p,) array
    value : float
    slope : (p,) array
    information : (p, p) array
    """

    theta: np.ndarray
    value: float
    slope: np.ndarray
    information: np.ndarray

    @classmethod
    def of(
        cls,
        covariance: Covariance,
        theta: np.ndarray,
        scatter: np.ndarray,
        gradients: Gradients,
        design: np.ndarray,
    ) -> _Scored | None:
        """Evaluate; None where there is no covariance of these directions, or not to rounding."""
        candidate = covariance.replaced(theta)
        K = candidate.matrix(gradients) + np.eye(len(scatter))
        try:
            value, slope, precision = restricted_likelihood(scatter, K, design)
        except np.linalg.LinAlgError:
            return None
        derivatives = candidate.derivatives(gradients)
        by_parameter = precision @ derivatives
        traces = np.einsum("kii->k", by_parameter)
        flat = by_parameter.reshape(len(theta), -1)
        turned = by_parameter.transpose(0, 2, 1).reshape(len(theta), -1)
        n_free = len(K) - design.shape[1]
        information = flat @ turned.T - np.outer(traces, traces) / n_free
        return cls(theta, value, np.tensordot(derivatives, slope, axes=2), information)

    def step(self, low: np.ndarray, high: np.ndarray, damping: float) -> np.ndarray:
        """Return a step within the bounds, (p,)."""
        held = (self.theta <= low) & (self.slope > 0) | (self.theta >= high) & (self.slope < 0)
        free, step = np.flatnonzero(~held), np.zeros(len(self.theta))
        matrix = self.information[np.ix_(free, free)]
        matrix = matrix + np.diag(damping * np.diag(matrix) + np.finfo(float).tiny)
        with suppress(np.linalg.LinAlgError):
            step[free] = -np.linalg.solve(matrix, self.slope[free])
        step *= min(1.0, LONGEST_STEP / max(np.abs(step).max(), LONGEST_STEP))
        return np.clip(self.theta + step, low, high) - self.theta


def restricted_likelihood(
    scatter: np.ndarray, K: np.ndarray, X: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
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
    precision : (N, N) array
        ``P``

    Raises
    ------
    numpy.linalg.LinAlgError
        If `K` is not positive definite.
    """
    factor = np.linalg.cholesky(K)
    inverse = inverse_from(factor)
    weighted = inverse @ X
    information = X.T @ weighted
    precision = inverse - weighted @ np.linalg.solve(information, weighted.T)
    filtered = precision @ scatter
    misfit = max(np.trace(filtered), np.finfo(float).tiny)
    n_free = len(K) - X.shape[1]
    value = n_free * np.log(misfit) + 2 * np.log(np.diag(factor)).sum()
    value += np.linalg.slogdet(information)[1]
    return float(value), precision - n_free / misfit * (filtered @ precision), precision

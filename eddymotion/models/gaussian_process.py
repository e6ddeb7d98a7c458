"""Gaussian process over gradient directions and b-values.

The covariance of Andersson & Sotiropoulos (2015, NeuroImage 122:166): in a voxel, signals along
two directions resemble each other the more, the smaller the angle ``θ`` between them, and the
less, the further apart their b-values::

    K_ij = s² [ C_θ(θ_ij; a) · exp(−(ln b_i − ln b_j)² / 2ℓ²) + λ δ_ij ]
    C_θ(θ; a) = 1 − 3θ/2a + θ³/2a³   for θ ≤ a, else 0                      (spherical)

around a mean that is free in each shell (a flat prior on one coefficient a shell, b=0 included;
the latter has no angular part). ``a``, ``ℓ`` and ``λ`` come from the data, by restricted maximum
likelihood of the sample covariance ``S = Σ yyᵀ / V`` of the voxels, with ``s²`` profiled out::

    (N − q) ln tr(P S) + ln|K| + ln|XᵀK⁻¹X| → min
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from eddymotion.gradients import Gradients
from eddymotion.models.average import shell_indicators
from eddymotion.models.base import LinearModel, projected_precision

log = logging.getLogger(__name__)

VOXELS_FOR_HYPERPARAMETERS = 20_000

_SPHERE_ANGLES = (np.arange(2000) + 0.5) * np.pi / 4000  # 0 … 90°, for averages over directions


@dataclass(frozen=True)
class Hyperparameters:
    """Of the angular covariance.

    Parameters
    ----------
    angle : float
        ``a``: the angle (rad) beyond which signals are unrelated; at most π/2 is reached, since
        directions are axes.
    b_scale : float
        ``ℓ``: how far apart, in ``ln b``, shells still resemble each other.
    noise : float
        ``λ``: noise variance relative to the signal's.
    """

    angle: float = 1.2
    b_scale: float = 0.6
    noise: float = 0.1


@dataclass(frozen=True)
class GaussianProcessModel(LinearModel):
    """Gaussian process with the spherical covariance of Andersson & Sotiropoulos (2015).

    Parameters
    ----------
    hyperparameters : Hyperparameters, optional
        Fitted to the data by restricted maximum likelihood when not given.
    min_q_distance : float
        As in :class:`~eddymotion.models.base.LinearModel`.
    """

    hyperparameters: Hyperparameters | None = None
    min_q_distance: float = 0.0

    def precision(self, signal: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Return the precision at the given, or else the most likely, hyper-parameters."""
        hyper = self.hyperparameters or fit_hyperparameters(signal, gradients)
        return projected_precision(covariance(gradients, hyper), shell_indicators(gradients))


def covariance(gradients: Gradients, hyper: Hyperparameters) -> np.ndarray:
    """Covariance of the volumes of a voxel, (N, N), up to the signal variance ``s²``."""
    dwi = ~gradients.is_b0
    cosines = np.abs(gradients.bvecs @ gradients.bvecs.T)
    similarity = spherical(np.arccos(np.clip(cosines, 0, 1)), hyper.angle)
    if gradients.is_trace.any():  # a mean over directions resembles each equally
        trace = gradients.is_trace
        over_directions = np.sin(_SPHERE_ANGLES) * spherical(_SPHERE_ANGLES, hyper.angle)
        mean = over_directions.sum() / np.sin(_SPHERE_ANGLES).sum()
        similarity[trace] = similarity[:, trace] = mean
    log_b = np.log(np.where(dwi, gradients.bvals, 1.0))
    across = np.exp(-((log_b[:, None] - log_b) ** 2) / (2 * hyper.b_scale**2))
    angular = np.where(np.outer(dwi, dwi), similarity * across, 0.0)
    return angular + hyper.noise * np.eye(len(gradients))


def spherical(angles: np.ndarray, reach: float) -> np.ndarray:
    """Spherical covariance function: one at zero, zero from `reach` on."""
    ratio = np.minimum(angles / reach, 1.0)
    return 1 - 1.5 * ratio + 0.5 * ratio**3


def fit_hyperparameters(signal: np.ndarray, gradients: Gradients) -> Hyperparameters:
    """Find the most likely hyper-parameters.

    Parameters
    ----------
    signal : (V, N) array
        Voxels; 20 000 of those brighter than the average one, drawn at random, are used.
    gradients : Gradients

    Returns
    -------
    Hyperparameters
    """
    brightness = signal.mean(axis=1)
    bright = np.flatnonzero(brightness >= brightness.mean())
    if len(bright) > VOXELS_FOR_HYPERPARAMETERS:
        random = np.random.default_rng(0)
        bright = np.sort(random.choice(bright, VOXELS_FOR_HYPERPARAMETERS, replace=False))
    sample = signal[bright].astype(float)
    scatter = sample.T @ sample / len(sample)
    design = shell_indicators(gradients)
    several_shells = len(gradients.shells) > 1

    def unpack(theta: np.ndarray) -> Hyperparameters:
        angle, noise, *b_scale = np.exp(np.clip(theta, -12, 5))
        hyper = Hyperparameters(angle=min(angle, 10.0), noise=max(noise, 1e-6))
        return replace(hyper, b_scale=b_scale[0]) if b_scale else hyper

    def objective(theta: np.ndarray) -> float:
        return restricted_likelihood(scatter, covariance(gradients, unpack(theta)), design)

    start = Hyperparameters()
    theta = np.log([start.angle, start.noise, *([start.b_scale] if several_shells else [])])
    found = minimize(objective, theta, method="Nelder-Mead", options={"xatol": 0.02, "fatol": 0.1})
    hyper = unpack(found.x)
    log.debug("Gaussian process: %s after %d evaluations", hyper, found.nfev)
    return hyper


def restricted_likelihood(scatter: np.ndarray, K: np.ndarray, X: np.ndarray) -> float:
    """−2 × restricted log-likelihood a voxel, with the signal variance profiled out.

    Parameters
    ----------
    scatter : (N, N) array
        ``Σ yyᵀ / V`` over voxels.
    K : (N, N) array
        Covariance up to scale.
    X : (N, q) array
        Design of the mean.
    """
    try:
        factor = np.linalg.cholesky(K)
    except np.linalg.LinAlgError:
        return np.inf
    half = np.linalg.solve(factor, X)
    information = half.T @ half
    inverse = np.linalg.inv(K)
    weighted = inverse @ X
    precision = inverse - weighted @ np.linalg.solve(information, weighted.T)
    misfit = np.einsum("ij,ji->", precision, scatter)
    if misfit <= 0:
        return np.inf
    log_determinants = 2 * np.log(np.diag(factor)).sum() + np.linalg.slogdet(information)[1]
    return (len(K) - X.shape[1]) * np.log(misfit) + log_determinants

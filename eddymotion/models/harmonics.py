# SPDX-License-Identifier: Apache-2.0
"""Covariance on shells by even spherical harmonics.

One that depends on the angle between two directions alone is a sum of Legendre polynomials. In a
brain not all directions are alike: many fibres run from left to right, few obliquely, and a
prediction that does not know it is wrong in the same way all over the brain, which pulls on the
pose. So the coefficients of the low orders get a covariance of their own, learnt from the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import scipy
from numpy.polynomial.legendre import leg2poly

from eddymotion.data.gradients import Gradients
from eddymotion.models.base import projected_precision
from eddymotion.models.covariance import (
    MOST_SIGNAL,
    Covariance,
    across_shells,
    log_b_distance,
)

ORDERS = (2, 4, 6, 8)

VOLUMES_A_COEFFICIENT = 2.0
"""An order gets a free covariance with this many volumes for each coefficient up to it."""

EM_ITERATIONS = 40

REFERENCE_B = 1000.0
"""s/mm²; where the variances of the orders are given."""


@dataclass(frozen=True)
class LegendreCovariance(Covariance):
    """Variance of each even spherical-harmonic order, and how it changes with the b-value.

    A covariance of directions that depends on their angle ``φ`` alone is a sum of Legendre
    polynomials with coefficients that are not negative (Schoenberg 1942); odd orders vanish for
    axes, and the order zero is the mean's::

        K_ij = Σ_l c_l P_l(cos φ_ij) · exp(−(ln b_i − ln b_j)² / 2ℓ²) · (b_i b_j / 1000²)^κ

    Parameters
    ----------
    variances : tuple of four floats
        ``c_2 … c_8``: variance of each order at b=1000 s/mm², over that of the noise.
    b_scale : float
        ``ℓ``: how far apart, in ``ln b``, shells still resemble each other.
    b_power : float
        ``κ``: power of the b-value with which the signal along a direction deviates.
    """

    variances: tuple[float, ...] = (12.0, 3.0, 1.0, 0.5)
    b_scale: float = 0.8
    b_power: float = 0.3

    def theta(self, gradients: Gradients) -> np.ndarray:
        """Logarithms of the variances and, with several shells, of b_scale; b_power as it is."""
        across = [np.log(self.b_scale), self.b_power] if len(gradients.shells) > 1 else []
        return np.array([*np.log(self.variances), *across])

    def replaced(self, theta: np.ndarray) -> LegendreCovariance:
        """Invert :meth:`theta`."""
        n = len(ORDERS)
        new = replace(self, variances=tuple(float(v) for v in np.exp(theta[:n])))
        if len(theta) > n:
            new = replace(new, b_scale=float(np.exp(theta[n])), b_power=float(theta[n + 1]))
        return new

    def bounds(self, gradients: Gradients) -> list[tuple[float, float]]:
        """Return the bounds of :meth:`theta`."""
        log_variance = (-9.0, np.log(MOST_SIGNAL))
        across = [(np.log(0.05), np.log(20.0)), (-3.0, 3.0)] if len(gradients.shells) > 1 else []
        return [log_variance] * len(ORDERS) + across

    def matrix(self, gradients: Gradients, orders: tuple[int, ...] = ORDERS) -> np.ndarray:
        """Return ``K_θ`` (N, N), or the part of it that some `orders` make."""
        return self._parts(gradients, orders).sum(axis=0)

    def derivatives(self, gradients: Gradients) -> np.ndarray:
        """Return ``∂K_θ/∂θ``, (p, N, N)."""
        by_variance = self._parts(gradients, ORDERS)
        if len(gradients.shells) <= 1:
            return by_variance
        matrix = by_variance.sum(axis=0)
        log_b = _log_b(gradients)
        by_scale = matrix * log_b_distance(gradients) / self.b_scale**2
        by_power = matrix * (log_b[:, None] + log_b)
        return np.concatenate([by_variance, by_scale[None], by_power[None]])

    def resemblance(self, gradients: Gradients) -> np.ndarray:
        """Return what the b-values make of two volumes of the same direction, (N, N)."""
        directed = gradients.bvecs.any(axis=1)  # a mean over directions has only order zero
        growth = np.exp(self.b_power * _log_b(gradients)) * directed
        return across_shells(gradients, self.b_scale) * np.outer(growth, growth)

    def refined(self, scatter: np.ndarray, gradients: Gradients, design: np.ndarray) -> Covariance:
        """Let directions differ; see :func:`learn_directions`."""
        return learn_directions(self, scatter, gradients, design)

    def _parts(self, gradients: Gradients, orders: tuple[int, ...]) -> np.ndarray:
        """``c_l P_l`` of all pairs times what the b-values do, an order each."""
        cosines = np.clip(gradients.bvecs @ gradients.bvecs.T, -1, 1)
        by_order = dict(zip(ORDERS, self.variances, strict=True))
        parts = [by_order[order] * _legendre(order, cosines) for order in orders]
        return np.reshape(parts, (len(orders), *cosines.shape)) * self.resemblance(gradients)


@dataclass(frozen=True, eq=False)
class HarmonicCovariance(Covariance):
    """A covariance in which not all directions are alike.

    The low orders of a :class:`LegendreCovariance` are replaced by real spherical harmonics ``Y``
    with coefficients of any covariance ``C``, the same for all b-values up to their growth and
    resemblance ``R``; the other orders stay::

        K_ij = Σ_kl Y_k(g_i) C_kl Y_l(g_j) R(b_i, b_j) + Σ_{high l} c_l P_l(g_i·g_j) R(b_i, b_j)

    Parameters
    ----------
    isotropic : LegendreCovariance
    coefficients : (k, k) array
        ``C``, over orders 2, 4, … and within each over m = −l … l.
    """

    isotropic: LegendreCovariance
    coefficients: np.ndarray

    def theta(self, gradients: Gradients) -> np.ndarray:
        """Nothing is left to the optimiser."""
        return np.empty(0)

    def replaced(self, theta: np.ndarray) -> HarmonicCovariance:
        """Return the same."""
        return self

    def bounds(self, gradients: Gradients) -> list[tuple[float, float]]:
        """Return none."""
        return []

    def matrix(self, gradients: Gradients) -> np.ndarray:
        """Return ``K_θ``, (N, N)."""
        orders = _orders_of(len(self.coefficients))
        basis = real_harmonics(gradients.bvecs, orders)
        low = basis @ self.coefficients @ basis.T * self.isotropic.resemblance(gradients)
        return low + self.isotropic.matrix(gradients, ORDERS[len(orders) :])

    def derivatives(self, gradients: Gradients) -> np.ndarray:
        """Return none."""
        return np.empty((0, len(gradients), len(gradients)))


def learn_directions(
    isotropic: LegendreCovariance, scatter: np.ndarray, gradients: Gradients, design: np.ndarray
) -> Covariance:
    """Let the low orders differ between directions, as far as the volumes determine it.

    Expectation-maximisation for the covariance ``C`` of latent coefficients (Rubin & Thayer 1982,
    Psychometrika 47:69), from the isotropic one on. ``R`` is written as ``Σ_r u_r u_rᵀ``; the
    coefficients of each ``r`` are independent, with the same ``C``.

    Parameters
    ----------
    isotropic : LegendreCovariance
        Fitted.
    scatter : (N, N) array
    gradients : Gradients
        Without b=0.
    design : (N, q) array
        ``X`` of the mean.

    Returns
    -------
    Covariance
        `isotropic` itself where the volumes are too few.
    """
    sizes = np.cumsum([2 * order + 1 for order in ORDERS])
    n_orders = int((sizes * VOLUMES_A_COEFFICIENT <= len(gradients)).sum())
    if not n_orders:
        return isotropic
    orders = ORDERS[:n_orders]
    basis = real_harmonics(gradients.bvecs, orders)
    values, vectors = np.linalg.eigh(isotropic.resemblance(gradients))
    roots = (vectors * np.sqrt(np.maximum(values, 0.0)))[:, values > 1e-3 * values[-1]]
    factors = np.concatenate([basis * root[:, None] for root in roots.T], axis=1)
    rest = isotropic.matrix(gradients, ORDERS[n_orders:]) + np.eye(len(gradients))
    precision = projected_precision(rest, design)
    by_order = dict(zip(ORDERS, isotropic.variances, strict=True))
    start = [by_order[order] / (2 * order + 1) for order in orders for _ in range(2 * order + 1)]
    taken = precision @ factors
    coefficients = _maximised(
        np.diag(start),
        taken.T @ factors,
        taken.T @ scatter @ taken,
        float(np.trace(precision @ scatter)),
        len(gradients) - design.shape[1],
    )
    return HarmonicCovariance(isotropic, coefficients)


def _maximised(
    coefficients: np.ndarray, gram: np.ndarray, seen: np.ndarray, left: float, n_free: int
) -> np.ndarray:
    """Maximise the expectation over latent coefficients; see :func:`learn_directions`.

    Parameters
    ----------
    coefficients : (k, k) array
        ``C`` to begin with.
    gram, seen : (R k, R k) array
        ``A`` and ``B``.
    left : float
        ``tr(P S)``
    n_free : int
        Degrees of freedom of the noise.
    """
    size, n_factors = len(coefficients), len(gram) // len(coefficients)
    for _ in range(EM_ITERATIONS):
        every = np.kron(np.eye(n_factors), coefficients)
        gain = np.linalg.solve(np.eye(len(gram)) + every @ gram, every)  # C M
        noise = (left - np.trace(gain @ seen)) / n_free
        moments = gain @ seen @ gain.T / noise + gain
        blocks = moments.reshape(n_factors, size, n_factors, size)
        coefficients = np.einsum("rirj->ij", blocks) / n_factors
    return coefficients


def _legendre(order: int, cosines: np.ndarray) -> np.ndarray:
    """Evaluate the Legendre polynomial of an even order, by powers of the square."""
    squares, found = cosines * cosines, np.zeros_like(cosines)
    for coefficient in _powers_of_legendre(order):
        found *= squares
        found += coefficient
    return found


@cache
def _powers_of_legendre(order: int) -> np.ndarray:
    """Coefficients of the even powers of a Legendre polynomial of even order, highest first."""
    return leg2poly([0] * order + [1])[::-2]


def real_harmonics(bvecs: np.ndarray, orders: tuple[int, ...]) -> np.ndarray:
    """Real spherical harmonics, of unit mean square over the sphere.

    Parameters
    ----------
    bvecs : (N, 3) array
        Unit vectors; rows of zeros give zeros.
    orders : tuple of int

    Returns
    -------
    (N, k) array
        By order, m = −l … l within each: the sum of products within an order is
        ``(2l + 1) P_l`` of the angle between two directions.
    """
    polar = np.arccos(np.clip(bvecs[:, 2], -1, 1))
    azimuth = np.arctan2(bvecs[:, 1], bvecs[:, 0])
    columns = []
    for order in orders:
        for m in range(-order, order + 1):
            values = scipy.special.sph_harm_y(order, abs(m), polar, azimuth)
            part = values.imag if m < 0 else values.real
            columns.append(part * (np.sqrt(2) if m else 1.0))
    directed = np.linalg.norm(bvecs, axis=1, keepdims=True) > 0
    return np.sqrt(4 * np.pi) * np.stack(columns, axis=1) * directed


def _orders_of(n_coefficients: int) -> tuple[int, ...]:
    sizes = list(np.cumsum([2 * order + 1 for order in ORDERS]))
    return ORDERS[: sizes.index(n_coefficients) + 1]


def _log_b(gradients: Gradients) -> np.ndarray:
    return np.log(np.where(gradients.is_b0, REFERENCE_B, gradients.bvals) / REFERENCE_B)

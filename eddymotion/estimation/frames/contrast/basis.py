# SPDX-License-Identifier: Apache-2.0
"""Functions of mean, standard deviation and place: what predicts the b=0 signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.images.grid import grid_indices
from eddymotion.machine.frozen import selected

N_KNOTS, N_SPREAD_KNOTS = 10, 8
"""Hat functions of the mean and of the standard deviation."""

KNOT_RANGE = (0.01, 0.99)
"""Quantiles of a feature between which the knots are spaced evenly."""

RIDGE, PLACE_RIDGE = 1e-5, 1e-3
"""On ``β``, relative to the mean of the diagonal of the normal matrix, for hats without any
points; and on ``γ`` and ``δ``, for places with few points."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation over volumes at the points of clusters.

    Parameters
    ----------
    mean, spread : (C, N_POINTS) array
        NaN outside; no `spread` where the volumes are too few.
    mean_gradient, spread_gradient : (C, N_POINTS, 3) array, optional
        Per mm, along the axes of the head's frame.
    """

    mean: np.ndarray
    spread: np.ndarray | None
    mean_gradient: np.ndarray | None = None
    spread_gradient: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """Whether all points of a cluster lie inside all volumes, (C,)."""
        return np.isfinite(self.mean).all(axis=1)

    def select(self, clusters: slice | np.ndarray) -> Moments:
        """Return those of some clusters."""
        return selected(self, clusters, "mean", "spread", "mean_gradient", "spread_gradient")


@dataclass(frozen=True, eq=False)
class Basis:
    """Functions of mean, standard deviation and place.

    Parameters
    ----------
    by_mean : _Hats
    by_spread : _Hats, optional
    place_order : int
        Of the monomials of the place that single hats are multiplied by.
    """

    by_mean: _Hats
    by_spread: _Hats | None
    place_order: int

    @classmethod
    def over(cls, moments: Moments, place_order: int) -> Basis:
        """Choose the knots from the values of the moments."""
        spread = moments.spread
        return cls(
            _Hats.over(moments.mean, N_KNOTS),
            None if spread is None else _Hats.over(spread, N_SPREAD_KNOTS),
            place_order,
        )

    def at(self, mean: np.ndarray, spread: np.ndarray | None, place: np.ndarray) -> np.ndarray:
        """Return all functions at points (…): (…, K) float32."""
        powers = self._powers(place).astype(np.float32)
        hats = self.by_mean.at(mean).astype(np.float32)
        if self.by_spread is None or spread is None:
            return np.concatenate([hats, _products(hats, powers)], axis=-1)
        other = self.by_spread.at(spread).astype(np.float32)
        parts = _products(hats, other), _products(hats, powers), _products(other, powers)
        return np.concatenate(parts, axis=-1)

    def slopes(self, moments: Moments, place: np.ndarray, function: np.ndarray) -> np.ndarray:
        """Gradient of the prediction of a function (K,) at a fixed place: (C, N_POINTS, 3).

        ``Σ_j h_j′(m) (Σ_k β_jk h_k(s) + Σ_l γ_jl p_l) ∇m``, and the like for ``s``.
        """
        assert moments.mean_gradient is not None
        powers = self._powers(place)
        beta, gamma, delta = self._split(function)
        other = np.ones((*place.shape[:-1], 1))
        if self.by_spread is not None and moments.spread is not None:
            other = self.by_spread.at(moments.spread)
        along = self.by_mean.slopes_at(moments.mean) * (other @ beta.T + powers @ gamma.T)
        gradient = along.sum(axis=-1)[..., None] * moments.mean_gradient
        if self.by_spread is not None and moments.spread is not None:
            assert moments.spread_gradient is not None
            hats = self.by_mean.at(moments.mean)
            across = self.by_spread.slopes_at(moments.spread) * (hats @ beta + powers @ delta.T)
            gradient += across.sum(axis=-1)[..., None] * moments.spread_gradient
        return gradient

    def ridge(self) -> np.ndarray:
        """Relative ridge of each function, (K,)."""
        n_both, n_mean, n_spread = self._sizes
        return np.concatenate(
            [np.full(n_both, RIDGE), np.full(n_mean + n_spread, PLACE_RIDGE + RIDGE)]
        )

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Functions of both moments, of mean and place, and of standard deviation and place."""
        n_spread, n_powers = self._n_spread, len(_exponents(self.place_order))
        return N_KNOTS * max(n_spread, 1), N_KNOTS * n_powers, n_spread * n_powers

    @property
    def _n_spread(self) -> int:
        return 0 if self.by_spread is None else N_SPREAD_KNOTS

    def _split(self, function: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``β`` (J, K), ``γ`` (J, M) and ``δ`` (K, M) of a function; without spread K is one."""
        n_powers = len(_exponents(self.place_order))
        beta, gamma, delta = np.split(function, np.cumsum(self._sizes)[:2])
        return (
            beta.reshape(N_KNOTS, -1),
            gamma.reshape(N_KNOTS, n_powers),
            delta.reshape(self._n_spread, n_powers),
        )

    def _powers(self, place: np.ndarray) -> np.ndarray:
        """Return the monomials of places (…, 3), (…, M)."""
        powers = np.ones((*place.shape[:-1], self.place_order + 1, 3))
        for order in range(self.place_order):
            powers[..., order + 1, :] = powers[..., order, :] * place
        i, j, k = _exponents(self.place_order).T
        return powers[..., i, 0] * powers[..., j, 1] * powers[..., k, 2]


def _products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each of one set of functions (…, J) times each of another (…, K): (…, J · K)."""
    return (first[..., :, None] * second[..., None, :]).reshape(*first.shape[:-1], -1)


def _exponents(order: int) -> np.ndarray:
    """Exponents of x, y, z in the monomials of orders 1 to `order`, (M, 3)."""
    every = grid_indices([order + 1] * 3)
    total = every.sum(axis=1)
    return every[(total > 0) & (total <= order)]


@dataclass(frozen=True)
class _Hats:
    """Evenly spaced linear B-splines of a feature, constant beyond the ends."""

    low: float
    high: float
    n_knots: int

    @classmethod
    def over(cls, feature: np.ndarray, n_knots: int) -> _Hats:
        """Choose the ends by the values of a feature."""
        known = feature[np.isfinite(feature)]
        low, high = np.quantile(known, KNOT_RANGE) if len(known) else (0.0, 1.0)
        return cls(low, max(high, low + np.finfo(float).tiny), n_knots)

    def at(self, feature: np.ndarray) -> np.ndarray:
        """Return the functions at some values, (…, n_knots); NaN where they are."""
        last = self.n_knots - 1
        at = np.clip((feature - self.low) / (self.high - self.low) * last, 0, last)[..., None]
        return np.maximum(1 - np.abs(at - np.arange(self.n_knots)), 0.0)

    def slopes_at(self, feature: np.ndarray) -> np.ndarray:
        """Return their derivatives by the feature, (…, n_knots)."""
        per_unit = (self.n_knots - 1) / (self.high - self.low)
        at = ((feature - self.low) * per_unit)[..., None]
        away = at - np.arange(self.n_knots)
        rising = np.where(np.abs(away) < 1, -np.sign(away), 0.0)
        inside = (at > 0) & (at < self.n_knots - 1)
        return np.where(inside, rising * per_unit, 0.0)

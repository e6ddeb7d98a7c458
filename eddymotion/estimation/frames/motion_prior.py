# SPDX-License-Identifier: Apache-2.0
"""How a head moves from volume to volume, learnt from the steps that are known.

The step of volume ``t``, over a time ``Δ``, is a twist of six parts in mm, and has three causes::

    u_t = v_t Δ + r_t + ε_{t+1} − ε_t
    r_t ~ Σ_c π_c N(0, σ_c² Δ),   ε_t ~ N(0, τ²),   cov(v_s, v_t) = N exp(−|s − t| / ℓ)

A head that drifts goes on drifting for some volumes, ``v``; it takes steps of its own, ``r``, from
rest to jump; and where it is at a moment departs from its course by a jitter ``ε``, which turns
back. The scales ``σ_c`` are a fixed ladder; how often each is seen, ``π``, and ``N`` and ``τ`` are
learnt by expectation-maximisation: given the variances of all parts the steps are Gaussian, and
what each part takes of them is a matrix product. A head of which no step follows another ends with
no drift.

A head drifts one way mostly, and what it does along it says little of what it does across. ``N``
is a covariance of twists (6, 6), whose axes are found as its sizes are; with few steps it is drawn
towards a drift alike along all axes (:data:`EVEN_DRIFTS`). Along its axes, all else being alike,
the steps are independent of each other: six courses in time, each with a variance of its own. No
axis is known beforehand, so that a turn of the frame turns what is found.

What drifts and what turns back foretells a step from those around it, :meth:`MotionPrior.foresee`:
a head that was seen to slow down is not taken to have stood still before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import scipy

SCALES_MM = np.geomspace(0.01, 30.0, 20)
"""Steps that are told apart, for a human head."""

PRIOR_STEPS = 0.1
"""So many steps of each scale are taken as seen before any is."""

FIRST_JITTER_MM, LEAST_JITTER_MM = 0.03, 0.01

LEAST_FORESEEN = 0.01
"""Part of the least jitter's variance that a step is foreseen within at best."""

DRIFT_MEMORY = 6.0
"""Volumes of time in which a drift is forgotten to a part of 1/e. With 3 and 12 the errors of
drifting heads are the same within a fifth, with a Gaussian of 2 volumes no smaller."""

FIRST_DRIFT = 0.5
"""Share of the variance of the steps that is taken for drift at first."""

EVEN_DRIFTS = 6.0
"""So many independent drifts, alike along all axes, are taken as seen before any is. Errors with 4
and 12 are the same within a tenth."""

FIRST_JUMPS = 3.0
"""Steps so many times as long as the usual ones are taken for jumps at first: neither drift nor
jitter is made of them."""

FIRST_EXCURSIONS = 0.05

FAR_MM = 0.5
"""Scales of steps that an excursion begins with."""

QUIET_SHARE = 1 / 6

N_ITERATIONS, N_WEIGHINGS = 60, 20
"""Of what is learnt, and of the weights of steps by what was learnt."""


@dataclass(frozen=True, eq=False)
class Foreseen:
    """What the other steps tell of each, before it is looked at.

    Parameters
    ----------
    steps : (n, 6) array
        mm.
    variances : (n, 6) array
        Along the axes of the prior, mm², besides that of steps of its own.
    """

    steps: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True, eq=False)
class Visits:
    """Stays of a single volume: the steps to it and from it, beyond what was foreseen.

    Parameters
    ----------
    squares : (…, n, 3, 6) array
        Squares (mm²) along the axes of the prior, of the step to a volume, of that from it, and of
        both together.
    gaps : (n, 3) array
        Time that each takes.
    variances : (n, 3, 6) array
        Of each, as in :class:`Foreseen`.
    """

    squares: np.ndarray
    gaps: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True, eq=False)
class KnownSteps:
    """Steps that are known, and their covariances under some variances of all parts.

    With ``D`` of a drift of unit variance and ``S`` of all else, the covariance along axis ``a``
    is ``S + ν_a D``. One basis of modes ``W`` makes both diagonal, ``Wᵀ S W = 1`` and
    ``Wᵀ D W = λ``, so that all inverses are ``W diag(g_a) Wᵀ`` with gains
    ``g_a = 1 / (1 + ν_a λ)``.

    Parameters
    ----------
    modes : (k, k) array
    sizes : (k,) array
        ``λ``
    gains : (k, 6) array
        Of each mode along each axis of the prior.
    pulled : (k, 6) array
        The inverses times the steps.
    """

    modes: np.ndarray
    sizes: np.ndarray
    gains: np.ndarray
    pulled: np.ndarray

    @classmethod
    def of(
        cls, steps: np.ndarray, rest: np.ndarray, drift: np.ndarray, drifts: np.ndarray
    ) -> KnownSteps:
        """Take the steps along the axes, (k, 6).

        Parameters
        ----------
        rest, drift : (k, k) arrays
            ``S`` and ``D``.
        drifts : (6,) array
            ``ν``
        """
        sizes, modes = scipy.linalg.eigh(drift, rest)
        gains = 1 / (1 + sizes[:, None] * drifts)
        return cls(modes, sizes, gains, modes @ (gains * (modes.T @ steps)))

    def squares(self, across: np.ndarray, variance: float) -> np.ndarray:
        """Return expected squared lengths (m,) of m quantities alike along all axes.

        Parameters
        ----------
        across : (m, k) array
            Their covariance with the steps.
        variance : float
            Theirs.
        """
        taken, known = across @ self.pulled, self.known(across).sum(axis=1)
        return (taken**2).sum(axis=1) + 6 * variance - known

    def own_squares(self, spread: np.ndarray) -> np.ndarray:
        """Return those (k,) of parts that each step has for itself, with variances (k,)."""
        taken, known = spread[:, None] * self.pulled, self._of_each.sum(axis=1)
        return (taken**2).sum(axis=1) + 6 * spread - spread**2 * known

    def known(self, across: np.ndarray) -> np.ndarray:
        """How much of the variances along the axes is known, (m, 6), by covariances (m, k)."""
        return (across @ self.modes) ** 2 @ self.gains

    def drift(self, parts: np.ndarray, drifts: np.ndarray) -> np.ndarray:
        """Return the expected mean product (6, 6) of the m independent twists of a drift.

        Parameters
        ----------
        parts : (k, m) array
            What each adds to the steps.
        drifts : (6,) array
            Their variances along the axes.
        """
        taken, n_twists = drifts * (parts.T @ self.pulled), parts.shape[1]
        known = drifts**2 * (self.sizes @ self.gains)
        return taken.T @ taken / n_twists + np.diag(drifts - known / n_twists)

    def others(self) -> tuple[np.ndarray, np.ndarray]:
        """Return how far each step is from what the others foretell, and its variance: (k, 6)."""
        return self.pulled / self._of_each, 1 / self._of_each

    @property
    def _of_each(self) -> np.ndarray:
        return self.modes**2 @ self.gains


@dataclass(frozen=True, eq=False)
class MotionPrior:
    """How a head moves from volume to volume.

    Its axes are those of the drift: along each of them the parts of a step are independent.

    Parameters
    ----------
    shares : (C,) array
        Of the scales among its steps.
    variances : (C,) array
        mm² an axis, for one volume of time.
    jitter : float
        Variance (mm² an axis) of where it is at a moment.
    excursions : float
        Share of the volumes that it is away for, before it comes back.
    drift : (6, 6) array
        Covariance (mm²) of how far it drifts in one volume of time.
    """

    shares: np.ndarray
    variances: np.ndarray
    jitter: float
    drift: np.ndarray
    excursions: float = FIRST_EXCURSIONS

    @cached_property
    def axes(self) -> np.ndarray:
        """Those along which the head drifts independently: the columns, (6, 6)."""
        return np.linalg.eigh(self.drift)[1]

    @cached_property
    def drifts(self) -> np.ndarray:
        """Variances (mm²) of the drift along them, (6,)."""
        return np.einsum("ia,ij,ja->a", self.axes, self.drift, self.axes)

    @property
    def quiet(self) -> float:
        """Variance (mm² an axis) of the steps in quiet moments: of the slowest sixth."""
        return float(self.variances[np.searchsorted(np.cumsum(self.shares), QUIET_SHARE)])

    @classmethod
    def learn(cls, steps: np.ndarray, gaps: np.ndarray, size: float = 1.0) -> MotionPrior:
        """Learn from runs of steps, by expectation-maximisation.

        Parameters
        ----------
        steps : (n, 6) array
            mm; NaN where one is not known. Neighbours share a moment.
        gaps : (n,) array
            Volumes of time that each takes.
        size : float
            Of the head relative to a human one.
        """
        variances = (SCALES_MM * size) ** 2
        shares = np.full(len(variances), 1 / len(variances))
        prior = cls(shares, variances, (FIRST_JITTER_MM * size) ** 2, np.zeros((6, 6)))
        known, gaps = np.isfinite(steps).all(axis=1), np.asarray(gaps, float)
        if not known.any():
            return prior
        prior = prior._with_jitter(np.where(known[:, None], steps, 0.0), known)
        own = np.where(known, np.nan_to_num(steps**2).sum(axis=1) / gaps / 6, 0.0)
        typical = float(np.median(own[known]))
        prior = replace(prior, drift=FIRST_DRIFT * typical * np.eye(6))
        left = max((1 - FIRST_DRIFT) * typical - 2 * prior.jitter, variances[0])
        of_steps = np.where(own > FIRST_JUMPS**2 * typical, own, left)
        for _ in range(N_ITERATIONS):
            prior, of_steps = prior._improved(steps, gaps, of_steps, (LEAST_JITTER_MM * size) ** 2)
        return prior

    def _with_jitter(self, steps: np.ndarray, known: np.ndarray) -> MotionPrior:
        """Take the jitter of which quiet steps (n, 6) turn back, if it is more."""
        squares = (steps**2).sum(axis=1)
        quiet = known & (squares <= np.median(squares[known]))
        neighbours = quiet[:-1] & quiet[1:]
        if not neighbours.any():
            return self
        back = -float((steps[:-1] * steps[1:])[neighbours].mean())
        return replace(self, jitter=max(self.jitter, back))

    def _improved(
        self, steps: np.ndarray, gaps: np.ndarray, of_steps: np.ndarray, least_jitter: float
    ) -> tuple[MotionPrior, np.ndarray]:
        """Learn once more, with the variances (n,) of each step that the last time told."""
        known = np.isfinite(steps).all(axis=1)
        found = self._seen(steps, gaps, of_steps * gaps, known)
        own = found.own_squares((of_steps * gaps)[known])
        seen = self.responsibilities(own / gaps[known])
        shares = seen.sum(axis=0) + PRIOR_STEPS
        of_steps = np.full(len(steps), of_steps[0])
        of_steps[known] = 1 / (seen @ (1 / self.variances))
        moments = _shown(_moments_of(len(gaps))[known])
        jitter = float(found.squares(self.jitter * moments.T, self.jitter).mean() / 6)
        improved = replace(
            self,
            shares=shares / shares.sum(),
            jitter=max(jitter, least_jitter),
            drift=self._drift(found, _shown(_drifts_of(gaps)[known])),
        )
        return improved, of_steps

    def _drift(self, found: KnownSteps, parts: np.ndarray) -> np.ndarray:
        """Learn the covariance of the drift; before, it is taken as alike along all axes."""
        seen = self.axes @ found.drift(parts, self.drifts) @ self.axes.T
        n_seen, alike = parts.shape[1], np.trace(seen) / 6 * np.eye(6)
        return (n_seen * seen + EVEN_DRIFTS * alike) / (n_seen + EVEN_DRIFTS)

    def _seen(
        self, steps: np.ndarray, gaps: np.ndarray, spread: np.ndarray, known: np.ndarray
    ) -> KnownSteps:
        """Take the steps (n, 6) that are known, if those of their own have variances (n,)."""
        parts, moments = _drifts_of(gaps)[known], _moments_of(len(gaps))[known]
        rest = np.diag(spread[known]) + self.jitter * moments @ moments.T
        return KnownSteps.of(steps[known] @ self.axes, rest, parts @ parts.T, self.drifts)

    def foresee(self, steps: np.ndarray, gaps: np.ndarray) -> Foreseen:
        """Tell each step from the others that are known, (n, 6), NaN where one is not."""
        known = np.isfinite(steps).all(axis=1)
        lasting, spread = self.lasting(gaps), self.quiet * gaps
        alone = np.diagonal(lasting, axis1=1, axis2=2).T
        if not known.any():
            return Foreseen(np.zeros((len(steps), 6)), alone)
        for _ in range(N_WEIGHINGS):
            found = self._seen(steps, gaps, spread, known)
            seen = self.responsibilities(found.own_squares(spread[known]) / gaps[known])
            spread[known] = gaps[known] / (seen @ (1 / self.variances))
        away, variances = found.others()
        foretold, left = np.empty((len(steps), 6)), np.empty((len(steps), 6))
        foretold[known] = steps[known] - away @ self.axes.T
        left[known] = variances - spread[known, None]
        for axis, across in enumerate(lasting[:, ~known][:, :, known]):
            foretold[~known, axis] = across @ found.pulled[:, axis]
            left[~known, axis] = alone[~known, axis] - found.known(across)[:, axis]
        foretold[~known] = foretold[~known] @ self.axes.T
        return Foreseen(foretold, np.maximum(left, LEAST_FORESEEN * self.jitter))

    def lasting(self, gaps: np.ndarray) -> np.ndarray:
        """Covariances (6, n, n) of consecutive steps by drift and jitter, along each axis."""
        drifts, moments = _drifts_of(gaps), _moments_of(len(gaps))
        jitter = self.jitter * moments @ moments.T
        return self.drifts[:, None, None] * (drifts @ drifts.T) + jitter

    def scatter(self, of_steps: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """Covariances (6, n, n) of consecutive steps of these variances, along each axis."""
        return np.diag(of_steps * gaps) + self.lasting(gaps)

    def with_excursions(self, visits: Visits) -> MotionPrior:
        """Learn the share of excursions."""
        prior = self
        for _ in range(N_ITERATIONS if len(visits.gaps) else 0):
            away = 1 - prior.stays(visits)
            share = (away.sum() + FIRST_EXCURSIONS) / (len(away) + 1)
            prior = replace(prior, excursions=float(share))
        return prior

    def stays(self, visits: Visits) -> np.ndarray:
        """Probability that a volume is no excursion, (…, n)."""
        stay, away = self._of_visits(visits)
        return 1 / (1 + np.exp(np.clip(away - stay, -500, 500)))

    def visit(self, visits: Visits) -> np.ndarray:
        """Logarithm of the density of the steps to and from volumes, (…, n)."""
        return np.logaddexp(*self._of_visits(visits))

    def _of_visits(self, visits: Visits) -> tuple[np.ndarray, np.ndarray]:
        far = self.variances >= FAR_MM**2 * self.variances[0] / SCALES_MM[0] ** 2
        away = replace(self, shares=np.where(far, 1 / far.sum(), 1e-300))

        def density(prior: MotionPrior, which: int) -> np.ndarray:
            squares, gaps = visits.squares[..., which, :], visits.gaps[:, which]
            return prior.log_density(squares, gaps, visits.variances[:, which])

        stay = density(self, 0) + density(self, 1)
        gone = density(away, 0) + density(self, 2)
        return np.log1p(-self.excursions) + stay, np.log(self.excursions) + gone

    def responsibilities(self, squares: np.ndarray) -> np.ndarray:
        """Probability of each scale for steps of squared lengths (n,), (n, C)."""
        logs = (
            np.log(self.shares)
            - 3 * np.log(self.variances)
            - squares[:, None] / (2 * self.variances)
        )
        logs -= logs.max(axis=1, keepdims=True)
        weights = np.exp(logs)
        return weights / weights.sum(axis=1, keepdims=True)

    def log_density(
        self, squares: np.ndarray, gaps: np.ndarray, foreseen: np.ndarray
    ) -> np.ndarray:
        """Logarithm of the density of steps of squares (…, n, 6) along the axes: (…, n).

        Beyond what was foreseen with variances (n, 6).
        """
        variances = (self.variances * gaps[:, None])[:, None] + foreseen[..., None]
        logs = np.log(self.shares) - np.log(variances).sum(axis=-2) / 2
        logs = logs - np.einsum("...na,nac->...nc", squares, 1 / (2 * variances))
        top = logs.max(axis=-1, keepdims=True)
        return top[..., 0] + np.log(np.exp(logs - top).sum(axis=-1))


def _shown(parts: np.ndarray) -> np.ndarray:
    """Leave out what adds to no step."""
    return parts[:, (parts != 0).any(axis=0)]


def _moments_of(n_steps: int) -> np.ndarray:
    """Turn jitter of n + 1 moments into that of the steps between them, (n, n + 1)."""
    return np.eye(n_steps, n_steps + 1, k=1) - np.eye(n_steps, n_steps + 1)


def _drifts_of(gaps: np.ndarray) -> np.ndarray:
    """Turn independent numbers of one variance into the drift of steps, (n, n)."""
    return _drifts_of_times(tuple(gaps.tolist()))


@lru_cache(maxsize=2)
def _drifts_of_times(gaps: tuple[float, ...]) -> np.ndarray:
    """From each to the next a drift keeps a part of itself and gets what is new."""
    middles = np.cumsum(gaps) - np.array(gaps) / 2
    kept = np.exp(-np.abs(np.subtract.outer(middles, middles)) / DRIFT_MEMORY)
    return np.array(gaps)[:, None] * np.linalg.cholesky(kept)

# SPDX-License-Identifier: Apache-2.0
"""How a head moves from volume to volume, learnt from the steps that are known.

The step of volume ``t``, over a time ``Δ``, is a twist (six components, mm) with three causes::

    u_t = v_t Δ + r_t + ε_{t+1} − ε_t
    r_t ~ Σ_c π_c N(0, σ_c² Δ),   ε_t ~ N(0, τ²),   cov(v_s, v_t) = N exp(−|s − t| / ℓ)

A drift ``v`` lasts for some volumes. Independent steps ``r`` range from rest to jumps. The
position at a moment differs from the course by a jitter ``ε``, which does not last. The scales
``σ_c`` are fixed. Their shares ``π``, and ``N`` and ``τ``, are learnt by expectation-maximisation:
given all variances, the steps are Gaussian, and the expected part of each cause is a matrix
product. Without correlation between steps the drift vanishes.

A head mostly drifts in one direction, and its drift along one axis tells little about others.
``N`` is a covariance of twists (6, 6), whose axes are learnt as well. With few steps it is shrunk
towards a drift that is equal along all axes (:data:`EVEN_DRIFTS`). Along its axes the steps are
independent of each other, since the other causes are isotropic: there are six courses in time,
each with its own variance. No axis is preferred, so that a rotation of the frame rotates the
result.

Drift and jitter predict a step from its neighbours (:meth:`MotionPrior.foresee`): where steps
become smaller, the step before them is expected to have been larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eddymotion.estimation.frames.state_kernels import PADDING, infer_states

SCALES_MM = np.geomspace(0.01, 30.0, 20)
"""Scales of steps that are distinguished, for a human head."""

PRIOR_STEPS = 0.1
"""Number of steps of each scale assumed as prior observations."""

FIRST_JITTER_MM, LEAST_JITTER_MM = 0.03, 0.01
"""From which learning starts, and the least that is learnt, for a human head."""

LEAST_FORESEEN = 0.01
"""Least variance of a predicted step, relative to that of the smallest jitter."""

DRIFT_MEMORY = 6.0
"""Correlation time of a drift (to 1/e), in volumes. With 3 and 12 the errors of drifting heads
differ by less than a fifth. With a Gaussian of 2 volumes they are no smaller."""

FIRST_DRIFT = 0.5
"""Initial share of drift in the variance of the steps."""

EVEN_DRIFTS = 6.0
"""Number of independent drifts, equal along all axes, assumed as prior observations. Errors with 4
and 12 differ by less than a tenth."""

FIRST_JUMPS = 3.0
"""Steps this many times longer than usual are initially taken for jumps: neither drift nor jitter
contains them."""

FIRST_EXCURSIONS = 0.05
"""Share of excursions before any is seen; it counts as one volume."""

FAR_MM = 0.5
"""Least scale of the steps that begin an excursion."""

QUIET_SHARE = 1 / 6
"""Of the steps, the slowest, that tell the variance of quiet moments."""

N_ITERATIONS, N_WEIGHINGS = 60, 20
"""Iterations of learning, and of the weights of steps by the result."""


@dataclass(frozen=True, eq=False)
class Foreseen:
    """Prediction of each step from the others.

    Parameters
    ----------
    steps : (n, 6) array
        mm.
    variances : (n, 6) array
        Along the axes of the prior, mm², in addition to that of the step itself.
    """

    steps: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True, eq=False)
class Visits:
    """Steps to and from single volumes, beyond their predictions.

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
    """Inference of all n steps from the known ones, given the variances of all parts.

    Along each axis, ``v`` and ``ε`` of unit variance, steps are ``b v + c (ε_{t+1} − ε_t) + r``.
    Only neighbours in time are directly related
    (:mod:`eddymotion.estimation.frames.state_kernels`): no matrix of all steps is needed.

    Parameters
    ----------
    steps : (n, 6) array
        Along the axes of the prior; NaN where not known.
    spread : (n,) array
        Variances of ``r``.
    drifts : (6, n) array
        ``b``
    jitter : float
        ``c``
    kept : (n,) array
        Correlation of each drift with the one before.
    means : (6, 2 n + 1) array
        Of ``ε`` and ``v`` in turn.
    bands : (6, 2 n + 1, 3) array
        Their covariances with themselves and with the next two.
    """

    steps: np.ndarray
    spread: np.ndarray
    drifts: np.ndarray
    jitter: float
    kept: np.ndarray
    means: np.ndarray
    bands: np.ndarray

    @classmethod
    def of(
        cls,
        steps: np.ndarray,
        spread: np.ndarray,
        gaps: np.ndarray,
        drifts: np.ndarray,
        jitter: float,
    ) -> KnownSteps:
        """Take the steps (n, 6) along the axes, NaN where one is not known.

        Parameters
        ----------
        spread : (n,) array
            Variances of the independent part of each step.
        gaps : (n,) array
            Duration of each, in volumes.
        drifts : (6,) array
            Variances of the drift along the axes, for one volume of time.
        jitter : float
            Variance of the position at a moment.
        """
        known = np.isfinite(steps).all(axis=1)
        size = 2 * len(steps) + 1 + PADDING
        given = np.where(known[:, None], steps, 0.0).T
        along, root, kept = np.sqrt(drifts)[:, None] * gaps, float(np.sqrt(jitter)), _kept(gaps)
        means, bands = np.empty((6, size)), np.empty((6, size, 3))
        precisions = np.where(known, 1 / spread, 0.0)
        infer_states(np.ascontiguousarray(given), precisions, along, root, kept, means, bands)
        return cls(steps, spread, along, root, kept, means[:, :-PADDING], bands[:, :-PADDING])

    @cached_property
    def known(self) -> np.ndarray:
        """Which are known, (n,) bool."""
        return np.isfinite(self.steps).all(axis=1)

    @cached_property
    def lasting(self) -> np.ndarray:
        """Expected part of drift and jitter in each step, (n, 6)."""
        moments, drift = self.means[:, ::2], self.means[:, 1::2]
        return (self.drifts * drift + self.jitter * np.diff(moments)).T

    @cached_property
    def uncertain(self) -> np.ndarray:
        """The variance of that, (n, 6)."""
        own, next_, second = np.moveaxis(self.bands, 2, 0)
        moments = own[:, :-1:2] + own[:, 2::2] - 2 * second[:, :-1:2]
        across = next_[:, 1::2] - next_[:, :-1:2]
        b, c = self.drifts, self.jitter
        return (b**2 * own[:, 1::2] + c**2 * moments + 2 * b * c * across).T

    @property
    def pulled(self) -> np.ndarray:
        """The inverses of the covariances times the steps, (n, 6); NaN where not known."""
        return (self.steps - self.lasting) / self.spread[:, None]

    def own_squares(self) -> np.ndarray:
        """Return the expected squared lengths (n,) of ``r``; NaN where a step is not known."""
        return ((self.steps - self.lasting) ** 2 + self.uncertain).sum(axis=1)

    def jitter_square(self) -> float:
        """Return the expected mean square of the jitter, over moments next to known steps."""
        beside = np.append(self.known, False) | np.append(False, self.known)
        squares = self.means[:, ::2] ** 2 + self.bands[:, ::2, 0]
        return self.jitter**2 * float(squares[:, beside].mean())

    def drift(self, variances: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the expected mean product (6, 6) of the innovations of a drift, and their number.

        Parameters
        ----------
        variances : (6,) array
            Of the drift, along the axes.
        """
        drift, own, next_ = self.means[:, 1::2], self.bands[:, 1::2, 0], self.bands[:, 1::2, 2]
        before, left = np.roll(drift, 1, axis=1), 1 - self.kept**2
        new = (drift - self.kept * before) / np.sqrt(left)
        of_before, between = (np.roll(of, 1, axis=1) for of in (own, next_))
        unknown = (own - 2 * self.kept * between + self.kept**2 * of_before) / left
        n_new = int(np.flatnonzero(self.known)[-1]) + 1  # no known step depends on later ones
        new = np.sqrt(variances)[:, None] * new[:, :n_new]
        product = new @ new.T + np.diag(variances * unknown[:, :n_new].sum(axis=1))
        return product / n_new, n_new

    def others(self) -> tuple[np.ndarray, np.ndarray]:
        """Return deviations of steps from predictions by the others, and variances: (n, 6)."""
        precision = (1 - self.uncertain / self.spread[:, None]) / self.spread[:, None]
        return self.pulled / precision, 1 / precision


@dataclass(frozen=True, eq=False)
class MotionPrior:
    """How a head moves from volume to volume.

    Its axes are those of the drift, along which the components of a step are independent.

    Parameters
    ----------
    shares : (C,) array
        Of the scales among its steps.
    variances : (C,) array
        mm² an axis, for one volume of time.
    jitter : float
        Variance (mm² per axis) of the position at a moment.
    excursions : float
        Share of volumes in which the head is away before it comes back.
    drift : (6, 6) array
        Covariance (mm²) of the drift in one volume of time.
    """

    shares: np.ndarray
    variances: np.ndarray
    jitter: float
    drift: np.ndarray
    excursions: float = FIRST_EXCURSIONS

    @cached_property
    def axes(self) -> np.ndarray:
        """Axes along which drifts are independent: the columns, (6, 6)."""
        return np.linalg.eigh(self.drift)[1]

    @cached_property
    def drifts(self) -> np.ndarray:
        """Variances (mm²) of the drift along them, (6,)."""
        return np.maximum(np.einsum("ia,ij,ja->a", self.axes, self.drift, self.axes), 0.0)

    @property
    def quiet(self) -> float:
        """Variance (mm² an axis) of the steps in quiet moments: of the slowest sixth."""
        return float(self.variances[np.searchsorted(np.cumsum(self.shares), QUIET_SHARE)])

    @classmethod
    def learn(cls, steps: np.ndarray, gaps: np.ndarray, size: float = 1.0) -> MotionPrior:
        """Learn from consecutive steps, by expectation-maximisation.

        A head that trembles is easily taken for one whose steps last, if few steps are known. So
        it is learnt twice, with a small jitter at first and with usual steps that are all jitter.
        The result that predicts each step better from the others counts.

        Parameters
        ----------
        steps : (n, 6) array
            mm; NaN where one is not known. Each begins where the one before ends.
        gaps : (n,) array
            Duration of each, in volumes.
        size : float
            Of the head relative to a human one.
        """
        variances = (SCALES_MM * size) ** 2
        shares = np.full(len(variances), 1 / len(variances))
        prior = cls(shares, variances, (FIRST_JITTER_MM * size) ** 2, np.zeros((6, 6)))
        known, gaps = np.isfinite(steps).all(axis=1), np.asarray(gaps, float)
        if not known.any():
            return prior
        typical = float(np.median((steps[known] ** 2).mean(axis=1) / gaps[known]))
        learnt = [
            replace(prior, jitter=max(prior.jitter, first))._learnt(steps, gaps, typical, size)
            for first in (_reversals(steps, known), typical / 2)
        ]
        return max(learnt, key=lambda one: one.foretells(steps, gaps))

    def _learnt(
        self, steps: np.ndarray, gaps: np.ndarray, typical: float, size: float
    ) -> MotionPrior:
        """Learn from its jitter on; `typical`: square (mm² an axis) of a usual step."""
        prior = replace(self, drift=FIRST_DRIFT * typical * np.eye(6))
        own = np.nan_to_num(steps**2).mean(axis=1) / gaps
        left = max((1 - FIRST_DRIFT) * typical - 2 * prior.jitter, self.variances[0])
        of_steps = np.where(own > FIRST_JUMPS**2 * typical, own, left)
        for _ in range(N_ITERATIONS):
            prior, of_steps = prior._improved(steps, gaps, of_steps, (LEAST_JITTER_MM * size) ** 2)
        return prior

    def foretells(self, steps: np.ndarray, gaps: np.ndarray) -> float:
        """Log-likelihood of the known steps (n, 6), each predicted from the others."""
        known, foreseen = np.isfinite(steps).all(axis=1), self.foresee(steps, gaps)
        squares = ((steps - foreseen.steps)[known] @ self.axes) ** 2
        return float(self.log_density(squares, gaps[known], foreseen.variances[known]).sum())

    def _improved(
        self, steps: np.ndarray, gaps: np.ndarray, of_steps: np.ndarray, least_jitter: float
    ) -> tuple[MotionPrior, np.ndarray]:
        """Iterate once, with the variances (n,) of the steps from the last iteration."""
        known = np.isfinite(steps).all(axis=1)
        found = self._seen(steps, gaps, of_steps * gaps)
        seen = self.responsibilities(found.own_squares()[known] / gaps[known])
        shares = seen.sum(axis=0) + PRIOR_STEPS
        of_steps = np.full(len(steps), of_steps[0])
        of_steps[known] = 1 / (seen @ (1 / self.variances))
        improved = replace(
            self,
            shares=shares / shares.sum(),
            jitter=max(found.jitter_square(), least_jitter),
            drift=self._drift(found),
        )
        return improved, of_steps

    def _drift(self, found: KnownSteps) -> np.ndarray:
        """Learn the covariance of the drift; initially it is equal along all axes."""
        product, n_seen = found.drift(self.drifts)
        seen = self.axes @ product @ self.axes.T
        alike = np.trace(seen) / 6 * np.eye(6)
        return (n_seen * seen + EVEN_DRIFTS * alike) / (n_seen + EVEN_DRIFTS)

    def _seen(self, steps: np.ndarray, gaps: np.ndarray, spread: np.ndarray) -> KnownSteps:
        """Infer the causes of steps (n, 6) whose independent parts have variances (n,)."""
        return KnownSteps.of(steps @ self.axes, spread, gaps, self.drifts, self.jitter)

    def foresee(self, steps: np.ndarray, gaps: np.ndarray) -> Foreseen:
        """Predict each step from the others, (n, 6), of which unknown ones are NaN."""
        known, spread = np.isfinite(steps).all(axis=1)[:, None], self.quiet * gaps
        found = self._seen(steps, gaps, spread)
        for _ in range(N_WEIGHINGS):
            own = np.where(known[:, 0], found.own_squares(), 0.0)
            of_steps = 1 / (self.responsibilities(own / gaps) @ (1 / self.variances))
            found = self._seen(steps, gaps, np.where(known[:, 0], gaps * of_steps, spread))
        away, variances = found.others()
        foretold = np.where(known, steps - away @ self.axes.T, found.lasting @ self.axes.T)
        left = np.where(known, variances - found.spread[:, None], found.uncertain)
        return Foreseen(foretold, np.maximum(left, LEAST_FORESEEN * self.jitter))

    def weighed(self, steps: np.ndarray, spread: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """Multiply steps (n, 6) along the axes by the inverses of their covariances.

        Parameters
        ----------
        spread : (n,) array
            Variances of the independent part of each step.
        gaps : (n,) array
        """
        return KnownSteps.of(steps, spread, gaps, self.drifts, self.jitter).pulled

    def with_excursions(self, visits: Visits) -> MotionPrior:
        """Learn the share of excursions."""
        if not len(visits.gaps):
            return self
        prior, densities = self, self._densities(visits)
        for _ in range(N_ITERATIONS):
            away = 1 - prior._stay(*densities)
            share = (away.sum() + FIRST_EXCURSIONS) / (len(away) + 1)
            prior = replace(prior, excursions=float(share))
        return prior

    def stays(self, visits: Visits) -> np.ndarray:
        """Probability that a volume is no excursion, (…, n)."""
        return self._stay(*self._densities(visits))

    def visit(self, visits: Visits) -> np.ndarray:
        """Logarithm of the density of the steps to and from volumes, (…, n)."""
        return np.logaddexp(*self._by_share(*self._densities(visits)))

    def _stay(self, stay: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Probability that a volume is no excursion, from the densities of both cases, (…, n)."""
        stay, gone = self._by_share(stay, gone)
        return 1 / (1 + np.exp(np.clip(gone - stay, -500, 500)))

    def _by_share(self, stay: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.log1p(-self.excursions) + stay, np.log(self.excursions) + gone

    def _densities(self, visits: Visits) -> tuple[np.ndarray, np.ndarray]:
        """Log-densities of the steps to and from volumes without and with an excursion."""
        far = self.variances >= FAR_MM**2 * self.variances[0] / SCALES_MM[0] ** 2
        away = replace(self, shares=np.where(far, 1 / far.sum(), 1e-300))

        def density(prior: MotionPrior, which: int) -> np.ndarray:
            squares, gaps = visits.squares[..., which, :], visits.gaps[:, which]
            return prior.log_density(squares, gaps, visits.variances[:, which])

        stay = density(self, 0) + density(self, 1)
        return stay, density(away, 0) + density(self, 2)

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

        Of the difference from predictions with variances (n, 6).
        """
        variances = (self.variances * gaps[:, None])[:, None] + foreseen[..., None]
        logs = np.log(self.shares) - np.log(variances).sum(axis=-2) / 2
        logs = logs - np.einsum("...na,nac->...nc", squares, 1 / (2 * variances))
        top = logs.max(axis=-1, keepdims=True)
        return top[..., 0] + np.log(np.exp(logs - top).sum(axis=-1))


def _reversals(steps: np.ndarray, known: np.ndarray) -> float:
    """Variance (mm²) of the jitter that the reversals of quiet steps (n, 6) show."""
    squares = np.where(known[:, None], steps, 0.0) ** 2
    quiet = known & (squares.sum(axis=1) <= np.median(squares[known].sum(axis=1)))
    neighbours = quiet[:-1] & quiet[1:]
    return -float((steps[:-1] * steps[1:])[neighbours].mean()) if neighbours.any() else 0.0


def _kept(gaps: np.ndarray) -> np.ndarray:
    """How much of a drift is left from the middle of one step to that of the next, (n,)."""
    apart = (gaps[1:] + gaps[:-1]) / 2
    return np.append(0.0, np.exp(-apart / DRIFT_MEMORY))

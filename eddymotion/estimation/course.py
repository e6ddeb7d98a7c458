# SPDX-License-Identifier: Apache-2.0
"""The course of a head in time, through volumes of both contrasts.

A head mostly rests, trembles, drifts, and jumps now and then. From each volume ``t`` to the next
it takes a step ``r_t``, and where it is at a moment departs from its course by a jitter ``ε_t``::

    u_t = r_t + ε_{t+1} − ε_t,   r_t ~ Σ_c π_c N(0, σ_c² Δt),   ε_t ~ N(0, τ²)

with steps as twists in the head's frame, rotations as millimetres at 50 mm from its centre. The
scales ``σ_c`` are a fixed ladder from rest to jump; how often each is seen, ``π``, and ``τ`` are
learnt from the steps within a contrast, so that a head that moves half of the time is judged by
its quiet moments. No scale has to be chosen and no distribution of jumps assumed.

Some volumes are seen away from where those before and after them rest: the head went and came
back. Such excursions have a probability of their own, learnt alike, or both steps would speak for
one wrong offset.

Where a step leads from a b=0 volume to a diffusion-weighted one or back, an offset ``m`` of one
frame against the other adds to it, with the sign of the change. Its likelihood is that of the
steps; a drift through a b=0 volume cancels, since it is entered and left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.mapping.rigid import exp_rigid, log_rigid, twist_millimetres

SCALES_MM = np.geomspace(0.01, 30.0, 20)
"""Steps that are told apart, for a human head."""

PRIOR_STEPS = 0.1
"""So many steps of each scale are taken as seen before any is."""

FIRST_JITTER_MM, LEAST_JITTER_MM = 0.03, 0.01

FIRST_EXCURSIONS = 0.05

FAR_MM = 0.5
"""Scales of steps that an excursion begins with."""

QUIET_SHARE = 1 / 6

N_ITERATIONS = 60

N_DRAWS = 4000
"""Of the posterior, for its intervals."""

REACHES = np.array([1.0, 8.0, 64.0, 512.0])
"""Widths of what is drawn, relative to the mode: a head that is everywhere has a mode at rest, of
hundredths of a millimetre, and is nearly never there."""

TAIL_DOF = 3.0
"""Degrees of freedom of the distribution that is drawn from."""

Z_95 = 1.96


@dataclass(frozen=True, eq=False)
class MotionPrior:
    """How a head moves from volume to volume.

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
    """

    shares: np.ndarray
    variances: np.ndarray
    jitter: float
    excursions: float = FIRST_EXCURSIONS

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
        prior = cls(
            np.full(len(variances), 1 / len(variances)), variances, (FIRST_JITTER_MM * size) ** 2
        )
        known = np.isfinite(steps).all(axis=1)
        if not known.any():
            return prior
        steps, gaps = np.where(known[:, None], steps, 0.0), np.asarray(gaps, float)
        quiet = known & ((steps**2).sum(axis=1) <= np.median((steps[known] ** 2).sum(axis=1)))
        neighbours = quiet[:-1] & quiet[1:]
        if neighbours.any():  # jitter turns back
            back = -(steps[:-1] * steps[1:])[neighbours].mean()
            prior = replace(prior, jitter=max(prior.jitter, float(back)))
        typical = np.median((steps[known] ** 2).sum(axis=1) / gaps[known]) / 6
        of_steps = np.full(len(steps), max(typical - 2 * prior.jitter, variances[0]))
        for _ in range(N_ITERATIONS):
            scatter = prior.scatter(of_steps, gaps)[np.ix_(known, known)]
            inverse = np.linalg.inv(scatter)
            pulled = inverse @ steps[known]
            spread = (of_steps * gaps)[known]
            taken = spread[:, None] * pulled
            squares = (taken**2).sum(axis=1) + 6 * (spread - spread**2 * np.diag(inverse))
            responsibilities = prior.responsibilities(squares / gaps[known])
            of_steps = np.full(len(steps), of_steps[0])
            of_steps[known] = 1 / (responsibilities @ (1 / variances))
            change = _moments_of(len(steps))[known]
            moved = prior.jitter * change.T @ pulled
            left = prior.jitter - prior.jitter**2 * np.einsum(
                "ka,kl,la->a", change, inverse, change
            )
            seen = (change != 0).any(axis=0)
            jitter = float(((moved**2).sum(axis=1) / 6 + left)[seen].mean())
            shares = responsibilities.sum(axis=0) + PRIOR_STEPS
            prior = cls(
                shares / shares.sum(), variances, max(jitter, (LEAST_JITTER_MM * size) ** 2)
            )
        return prior

    def with_excursions(
        self, forth: np.ndarray, back: np.ndarray, both: np.ndarray, gaps: np.ndarray
    ) -> MotionPrior:
        """Learn the share of excursions.

        Parameters
        ----------
        forth, back, both : (n,) arrays
            Squared lengths (mm²) of the step to a volume, of that from it, and of both together.
        gaps : (n, 3) array
            Time that each takes.
        """
        prior = self
        for _ in range(N_ITERATIONS if len(forth) else 0):
            away = 1 - prior.stays(forth, back, both, gaps)
            share = (away.sum() + FIRST_EXCURSIONS) / (len(away) + 1)
            prior = replace(prior, excursions=float(share))
        return prior

    def stays(
        self, forth: np.ndarray, back: np.ndarray, both: np.ndarray, gaps: np.ndarray
    ) -> np.ndarray:
        """Probability that a volume is no excursion; parameters as above, any leading axes."""
        stay, away = self._of_visits(forth, back, both, gaps)
        return 1 / (1 + np.exp(np.clip(away - stay, -500, 500)))

    def visit(
        self, forth: np.ndarray, back: np.ndarray, both: np.ndarray, gaps: np.ndarray
    ) -> np.ndarray:
        """Logarithm of the density of the steps to and from volumes, (…, n)."""
        return np.logaddexp(*self._of_visits(forth, back, both, gaps))

    def _of_visits(
        self, forth: np.ndarray, back: np.ndarray, both: np.ndarray, gaps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        far = self.variances >= FAR_MM**2 * self.variances[0] / SCALES_MM[0] ** 2
        away = replace(self, shares=np.where(far, 1 / far.sum(), 1e-300))
        stay = self.log_density(forth, gaps[:, 0]) + self.log_density(back, gaps[:, 1])
        gone = away.log_density(forth, gaps[:, 0]) + self.log_density(both, gaps[:, 2])
        return np.log1p(-self.excursions) + stay, np.log(self.excursions) + gone

    def scatter(self, of_steps: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """Covariance of an axis of consecutive steps of these variances, (n, n)."""
        change = _moments_of(len(of_steps))
        return np.diag(of_steps * gaps) + self.jitter * change @ change.T

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

    def log_density(self, squares: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """Logarithm of the density of steps of squared lengths (…, n): (…, n)."""
        variances = self.variances * gaps[:, None] + 2 * self.jitter
        logs = np.log(self.shares) - 3 * np.log(variances) - squares[..., None] / (2 * variances)
        top = logs.max(axis=-1, keepdims=True)
        return top[..., 0] + np.log(np.exp(logs - top).sum(axis=-1))


def _moments_of(n_steps: int) -> np.ndarray:
    """Turn jitter of n + 1 moments into that of the steps between them, (n, n + 1)."""
    return np.eye(n_steps, n_steps + 1, k=1) - np.eye(n_steps, n_steps + 1)


@dataclass(frozen=True, eq=False)
class OffsetEstimate:
    """An offset as time, images or both tell it.

    Parameters
    ----------
    offset : (4, 4) array
    covariance : (6, 6) array
        Of a twist after it: mm, rad about the centre.
    """

    offset: np.ndarray
    covariance: np.ndarray

    def widened(self, covariance: np.ndarray) -> OffsetEstimate:
        """Add a covariance."""
        return replace(self, covariance=self.covariance + covariance)

    def given(
        self, moved: OffsetEstimate, between: np.ndarray, center: np.ndarray
    ) -> OffsetEstimate:
        """Tell the offset where it is known with a displacement, from that and from this.

        Parameters
        ----------
        moved : OffsetEstimate
            With the displacement; what this tells is part of it.
        between : (6, 6) array
            Covariance of the displacement.
        center : (3,) array
            About which twists turn, RAS+ mm.
        """
        gain = np.linalg.solve(self.covariance + between, self.covariance).T
        way = log_rigid(np.linalg.inv(self.offset) @ moved.offset, center)
        covariance = gain @ moved.covariance @ gain.T + self.covariance - gain @ self.covariance
        return OffsetEstimate(self.offset @ exp_rigid(gain @ way, center), covariance)


@dataclass(frozen=True, eq=False)
class Course:
    """Volumes of two frames in the order of time.

    Parameters
    ----------
    times : (n,) array
        When each was acquired, in volumes; ascending.
    in_group : (n,) bool array
        Which are of the second frame.
    starts, ends : (n, 4, 4) array
        Poses at the first and at the last excitation of each volume, each in its frame.
    center : (3,) array
        About which twists turn, RAS+ mm.
    size : float
        Of the head relative to a human one.
    beside : (6, 6) array, optional
        Covariance (mm, rad) of what displaces the volumes of the second frame and is no motion:
        images see it, time does not.
    """

    times: np.ndarray
    in_group: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    center: np.ndarray
    size: float = 1.0
    beside: np.ndarray | None = None

    @property
    def in_mm(self) -> np.ndarray:
        """Millimetres for each unit of a twist (mm, rad), (6,)."""
        return twist_millimetres(self.size)

    @property
    def gaps(self) -> np.ndarray:
        """Time from each volume to the next, (n − 1,)."""
        return np.diff(self.times)

    @property
    def changes(self) -> np.ndarray:
        """1 where the next volume is of the second frame and this is not, −1 back: (n − 1,)."""
        return np.diff(self.in_group.astype(int))

    def steps(self, offset: np.ndarray) -> np.ndarray:
        """Return the steps in mm if `offset` takes the first frame to the second, (n − 1, 6)."""
        ends, starts = (
            np.where(self.in_group[:, None, None], poses @ offset, poses)
            for poses in (self.ends, self.starts)
        )
        return log_rigid(np.linalg.inv(ends[:-1]) @ starts[1:], self.center) * self.in_mm

    def prior(self) -> MotionPrior:
        """Learn how the head moves from the steps within a frame."""
        steps = self.steps(np.eye(4))
        steps[self.changes != 0] = np.nan
        prior = MotionPrior.learn(steps, self.gaps, self.size)
        inner = 1 + np.flatnonzero((self.changes[:-1] == 0) & (self.changes[1:] == 0))
        squares = (steps**2).sum(axis=1)
        both, gaps = self._across(inner - 1, inner + 1)
        gaps = np.stack([self.gaps[inner - 1], self.gaps[inner], gaps], axis=1)
        visits = squares[inner - 1], squares[inner], both, gaps
        prior = prior.with_excursions(*visits)
        away = inner[prior.stays(*visits) < 0.5]  # their steps say nothing of the others
        steps[away - 1] = steps[away] = np.nan
        return replace(MotionPrior.learn(steps, self.gaps, self.size), excursions=prior.excursions)

    def _across(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared way (mm²) between volumes of one frame, and the time between."""
        way = log_rigid(np.linalg.inv(self.ends[before]) @ self.starts[after], self.center)
        return ((way * self.in_mm) ** 2).sum(axis=1), self.times[after] - self.times[before]

    def visits(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the steps into and out of each stay in the first frame, (k,) both."""
        changing = np.flatnonzero(self.changes)
        pairs = np.flatnonzero(self.changes[changing[:-1]] < 0)
        return changing[pairs], changing[pairs + 1]

    def proposals(self) -> np.ndarray:
        """Offsets at which the head rests during one change of frame, (k, 4, 4)."""
        first, second = self.ends[:-1], self.starts[1:]
        forth, back = self.changes > 0, self.changes < 0
        return np.concatenate(
            [
                np.linalg.inv(second[forth]) @ first[forth],
                np.linalg.inv(first[back]) @ second[back],
            ]
        )

    def offset(self, prior: MotionPrior, estimate: OffsetEstimate | None = None) -> OffsetEstimate:
        """Find the most likely offset, with what else tells it, and its covariance.

        Returns
        -------
        OffsetEstimate
            The intervals ``± 1.96`` standard errors hold 95 % of the posterior, axis by axis.
        """
        if self.beside is None:
            return self._offset(prior, estimate)
        if estimate is None:
            return self._offset(prior, None).widened(self.beside)
        moved = self._offset(prior, estimate.widened(self.beside))
        return estimate.given(moved, self.beside, self.center)

    def _offset(self, prior: MotionPrior, estimate: OffsetEstimate | None) -> OffsetEstimate:
        """Find the offset at which the head goes its way."""
        proposals = self.proposals()
        if estimate is not None:
            proposals = np.concatenate([proposals, estimate.offset[None]])
        likelihood = self._likelihood(prior, estimate)
        start = max(proposals, key=lambda one: float(likelihood(one, np.zeros((1, 6)))[0]))
        offset, covariance = self._find_mode(start, prior, estimate)
        return OffsetEstimate(offset, self._intervals(offset, covariance, likelihood))

    def _likelihood(
        self, prior: MotionPrior, estimate: OffsetEstimate | None
    ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Return a function of an offset and of small twists (k, 6; mm) after it: (k,)."""
        sign, gaps = self.changes, self.gaps
        forth, back = self.visits()
        alone = np.setdiff1d(np.flatnonzero(sign), np.concatenate([forth, back]))
        both, across = self._across(forth, back + 1)
        of_visits = np.stack([gaps[forth], gaps[back], across], axis=1)
        precision = np.zeros((6, 6))
        if estimate is not None:
            precision = np.linalg.inv(estimate.covariance * np.outer(self.in_mm, self.in_mm))

        def of(offset: np.ndarray, twists: np.ndarray) -> np.ndarray:
            steps = self.steps(offset)

            def squares(which: np.ndarray) -> np.ndarray:
                moved = steps[which] + sign[which, None] * twists[:, None]
                return (moved**2).sum(axis=-1)

            total = prior.log_density(squares(alone), gaps[alone]).sum(axis=-1)
            total = total + prior.visit(squares(forth), squares(back), both, of_visits).sum(
                axis=-1
            )
            if estimate is not None:
                apart = twists - self.apart(offset, estimate.offset) * self.in_mm
                total = total - np.einsum("ki,ij,kj->k", apart, precision, apart) / 2
            return total

        return of

    def apart(self, offset: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the twist (mm, rad) from one offset to another, (6,)."""
        return log_rigid(np.linalg.inv(offset) @ other, self.center)

    def squared(self, offset: np.ndarray, estimate: OffsetEstimate) -> float:
        """Squared distance of an offset from an estimate over its variance."""
        apart = self.apart(offset, estimate.offset)
        return float(apart @ np.linalg.solve(estimate.covariance, apart))

    def rest_misfit(self, estimate: OffsetEstimate, prior: MotionPrior) -> float:
        """Least squared step at the changes of frame, over the variance of a head at rest."""
        change = self.changes != 0
        steps = self.steps(estimate.offset)[change]
        known = np.diag(estimate.covariance) * self.in_mm**2
        variances = prior.quiet * self.gaps[change, None] + 2 * prior.jitter + known
        return float((steps**2 / variances).sum(axis=1).min())

    def _find_mode(
        self, offset: np.ndarray, prior: MotionPrior, estimate: OffsetEstimate | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Go to the mode near an offset; return it with the covariance there (mm, rad)."""
        sign = self.changes
        gaps = self.gaps
        forth, back = self.visits()
        both, across = self._across(forth, back + 1)
        of_visits = np.stack([gaps[forth], gaps[back], across], axis=1)
        inside = np.ones((6, 6))
        for _ in range(N_ITERATIONS):
            steps = self.steps(offset)
            squares = (steps**2).sum(axis=1)
            expected = prior.responsibilities(squares / gaps) @ (1 / prior.variances)
            stays = prior.stays(squares[forth], squares[back], both, of_visits)
            for of_visit in (forth, back):
                expected[of_visit] = stays * expected[of_visit] + (1 - stays) / prior.variances[-1]
            of_steps = 1 / expected
            inverse = np.linalg.inv(prior.scatter(of_steps, gaps))
            by_time = sign @ inverse @ sign
            normal = by_time * np.eye(6)
            right = -(sign @ inverse) @ steps
            if estimate is not None:
                precision = np.linalg.inv(estimate.covariance * np.outer(self.in_mm, self.in_mm))
                normal = normal + precision
                right = right + precision @ (self.apart(offset, estimate.offset) * self.in_mm)
            inside = np.linalg.inv(normal)
            step = inside @ right
            offset = offset @ exp_rigid(step / self.in_mm, self.center)
            if np.linalg.norm(step) < 1e-5 * self.size:
                break
        return offset, inside / np.outer(self.in_mm, self.in_mm)

    def _intervals(
        self,
        offset: np.ndarray,
        covariance: np.ndarray,
        likelihood: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Widen a covariance until its intervals hold 95 % of the posterior.

        Few steps may each have been a jump: the curvature at the mode does not know.
        """
        random = np.random.default_rng(0)
        root = np.linalg.cholesky(covariance * np.outer(self.in_mm, self.in_mm))
        normal = random.normal(size=(N_DRAWS, 6))
        shares = np.array([0.7, *np.full(len(REACHES) - 1, 0.3 / (len(REACHES) - 1))])
        reach = np.repeat(REACHES, np.round(shares * N_DRAWS).astype(int))
        tails = np.sqrt(TAIL_DOF / random.chisquare(TAIL_DOF, N_DRAWS)) * reach
        draws = (normal * tails[:, None]) @ root.T
        distance = (normal**2).sum(axis=1) * tails**2
        density = np.zeros(N_DRAWS)
        for scale, share in zip(REACHES, shares, strict=True):
            density += (
                share / scale**6 * (1 + distance / scale**2 / TAIL_DOF) ** (-(TAIL_DOF + 6) / 2)
            )
        logs = likelihood(offset, draws) - np.log(density)
        weights = np.exp(logs - logs.max())
        widths = []
        for axis in np.abs(draws).T:
            order = np.argsort(axis)
            total = np.cumsum(weights[order])
            widths.append(axis[order][np.searchsorted(total, 0.95 * total[-1])] / Z_95)
        factors = np.array(widths) / self.in_mm / np.sqrt(np.diag(covariance))
        factors = np.maximum(factors, 1.0)
        return covariance * np.outer(factors, factors)


def merged(
    first: np.ndarray,
    first_poses: np.ndarray,
    second: np.ndarray,
    second_poses: np.ndarray,
    center: np.ndarray,
    size: float = 1.0,
) -> Course:
    """Put volumes of two frames into the order of their positions in the series.

    Parameters
    ----------
    first, second : index arrays
        Positions in the series.
    first_poses, second_poses : (…, 4, 4) or (2, …, 4, 4) arrays
        Poses, each in its frame; or those at the first and those at the last excitation.
    center : (3,) array
        RAS+ mm.
    size : float
        Of the head relative to a human one.
    """
    times = np.concatenate([first, second])
    order = np.argsort(times, kind="stable")
    in_group = np.repeat([False, True], [len(first), len(second)])
    starts, ends = (
        np.concatenate([poses if poses.ndim == 3 else poses[end] for poses in
                        (first_poses, second_poses)])
        for end in (0, 1)
    )  # fmt: skip
    return Course(times[order], in_group[order], starts[order], ends[order], center, size)

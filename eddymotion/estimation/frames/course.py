# SPDX-License-Identifier: Apache-2.0
"""The course of a head in time, through volumes of both contrasts.

A head mostly rests, trembles, drifts, and jumps now and then. The steps within a contrast show how
much it does of each (:mod:`eddymotion.estimation.frames.motion_prior`). So a head that moves half
of the time is judged by its quiet moments, and one that drifts is expected to continue. No scale
has to be chosen, and no distribution of jumps assumed. Steps are twists in the frame of the head,
with rotations as millimetres at 50 mm from its centre.

In some volumes the head is away from where it rests before and after them: it moved and came back.
Such excursions have a probability of their own, which is learnt in the same way. Without it both
steps would support the same wrong offset.

Between a b=0 volume and a diffusion-weighted one, an offset ``m`` of one frame against the other
adds to the step, with the sign of the change. The likelihood of the offset is that of these steps,
beyond the part that is predicted from steps within a contrast. A drift through a b=0 volume
cancels, since it is part of the step to that volume and of the step from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.estimation.frames.motion_prior import Foreseen, MotionPrior, Visits
from eddymotion.mapping.rigid import exp_rigid, log_rigid, twist_millimetres
from eddymotion.robust import Z_95

N_ITERATIONS = 60
"""Of the search for the most likely offset, at most."""

N_DRAWS = 4000
"""Samples of the posterior, for its intervals."""

REACHES = np.array([1.0, 8.0, 64.0, 512.0])
"""Widths of the distributions that are drawn from, relative to the mode: a head that moves all the
time has a mode at rest, of hundredths of a millimetre, but is hardly ever there."""

TAIL_DOF = 3.0
"""Degrees of freedom of the distribution that is drawn from."""


@dataclass(frozen=True, eq=False)
class OffsetEstimate:
    """An offset estimated from time, images or both.

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
        """Return the offset, from an estimate that includes a displacement and from this one.

        Parameters
        ----------
        moved : OffsetEstimate
            With the displacement; it includes the information of this one.
        between : (6, 6) array
            Covariance of the displacement.
        center : (3,) array
            About which twists turn, RAS+ mm.
        """
        gain = np.linalg.solve(self.covariance + between, self.covariance).T
        twist = log_rigid(np.linalg.inv(self.offset) @ moved.offset, center)
        covariance = gain @ moved.covariance @ gain.T + self.covariance - gain @ self.covariance
        return OffsetEstimate(self.offset @ exp_rigid(gain @ twist, center), covariance)


@dataclass(frozen=True, eq=False)
class Course:
    """Volumes of two frames in the order of time.

    Parameters
    ----------
    times : (n,) array
        When each was acquired, in volumes; ascending.
    in_group : (n,) bool array
        Volumes of the second frame.
    starts, ends : (n, 4, 4) array
        Poses at the first and at the last excitation of each volume, each in its frame.
    center : (3,) array
        About which twists turn, RAS+ mm.
    size : float
        Of the head relative to a human one.
    displacement : (6, 6) array, optional
        Covariance (mm, rad) of a displacement of the volumes of the second frame that is not
        motion: images show it, steps in time do not.
    """

    times: np.ndarray
    in_group: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    center: np.ndarray
    size: float = 1.0
    displacement: np.ndarray | None = None

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

    def steps(self, offset: np.ndarray, some: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return steps in mm (n − 1, 6) if `offset` takes the first frame to the second."""
        ends, starts = (
            np.where(in_group[some, None, None], poses[some] @ offset, poses[some])
            for in_group, poses in (
                (self.in_group[:-1], self.ends[:-1]), (self.in_group[1:], self.starts[1:]),
            )
        )  # fmt: skip
        return log_rigid(np.linalg.inv(ends) @ starts, self.center) * self.in_mm

    def prior(self) -> MotionPrior:
        """Learn how the head moves from the steps within a frame."""
        steps = self._steps_within()
        prior = MotionPrior.learn(steps, self.gaps, self.size)
        inner = 1 + np.flatnonzero((self.changes[:-1] == 0) & (self.changes[1:] == 0))
        foreseen = prior.foresee(steps, self.gaps)
        own = steps[inner - 1], steps[inner]
        visits = self._visits_of(inner - 1, inner, own, foreseen, prior.axes)
        prior = prior.with_excursions(visits)
        away = inner[prior.stays(visits) < 0.5]  # their steps say nothing about the others
        steps[away - 1] = steps[away] = np.nan
        return replace(MotionPrior.learn(steps, self.gaps, self.size), excursions=prior.excursions)

    def _steps_within(self) -> np.ndarray:
        """Return the steps within a frame in mm, (n − 1, 6), NaN where the frame changes."""
        steps = self.steps(np.eye(4))
        steps[self.changes != 0] = np.nan
        return steps

    def foresee(self, prior: MotionPrior) -> Foreseen:
        """Predict each step from those within a frame."""
        return prior.foresee(self._steps_within(), self.gaps)

    def _visits_of(
        self,
        to: np.ndarray,
        back: np.ndarray,
        steps: tuple[np.ndarray, np.ndarray],
        foreseen: Foreseen,
        axes: np.ndarray,
    ) -> Visits:
        """Describe visits by the indices of the steps to them and back, (k,) both.

        Parameters
        ----------
        steps : two (…, k, 6) arrays
            These steps, mm.
        axes : (6, 6) array
            Of the prior.
        """
        twist = log_rigid(np.linalg.inv(self.ends[to]) @ self.starts[back + 1], self.center)
        both = twist * self.in_mm - foreseen.steps[to] - foreseen.steps[back]
        first, second = (
            ((own - foreseen.steps[at]) @ axes) ** 2
            for own, at in zip(steps, (to, back), strict=True)
        )
        across = np.broadcast_to((both @ axes) ** 2, first.shape)
        squares = np.stack([first, second, across], axis=-2)
        gaps = self.gaps[to], self.gaps[back], self.times[back + 1] - self.times[to]
        one, other = foreseen.variances[to], foreseen.variances[back]
        return Visits(squares, np.stack(gaps, axis=1), np.stack([one, other, one + other], axis=1))

    def visits(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the steps to and from each visit of the first frame, (k,) both."""
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
        """Find the most likely offset, from all sources, and its covariance.

        Returns
        -------
        OffsetEstimate
            The intervals ``± 1.96`` standard errors hold 95 % of the posterior, axis by axis.
        """
        if self.displacement is None:
            return self._offset(prior, estimate)
        if estimate is None:
            return self._offset(prior, None).widened(self.displacement)
        moved = self._offset(prior, estimate.widened(self.displacement))
        return estimate.given(moved, self.displacement, self.center)

    def _offset(self, prior: MotionPrior, estimate: OffsetEstimate | None) -> OffsetEstimate:
        """Find the offset at which the course of the head is most likely."""
        proposals = self.proposals()
        if estimate is not None:
            proposals = np.concatenate([proposals, estimate.offset[None]])
        foreseen = self.foresee(prior)
        likelihood = self._likelihood(prior, foreseen, estimate)
        start = max(proposals, key=lambda one: float(likelihood(one, np.zeros((1, 6)))[0]))
        offset, covariance = self._find_mode(start, prior, foreseen, estimate)
        return OffsetEstimate(offset, self._intervals(offset, covariance, likelihood))

    def _likelihood(
        self, prior: MotionPrior, foreseen: Foreseen, estimate: OffsetEstimate | None
    ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Return the log-likelihood (k,), a function of an offset and twists (k, 6) after it."""
        to, back = self.visits()
        alone = np.setdiff1d(np.flatnonzero(self.changes), np.concatenate([to, back]))
        precision = self._precision(estimate)

        def of(offset: np.ndarray, twists: np.ndarray) -> np.ndarray:
            lone, there, away = (  # a twist changes steps between frames only
                self.steps(offset, at) + self.changes[at, None] * twists[:, None]
                for at in (alone, to, back)
            )
            single = ((lone - foreseen.steps[alone]) @ prior.axes) ** 2
            total = prior.log_density(single, self.gaps[alone], foreseen.variances[alone]).sum(-1)
            total = total + prior.visit(
                self._visits_of(to, back, (there, away), foreseen, prior.axes)
            ).sum(axis=-1)
            if estimate is not None:
                apart = twists - self.apart(offset, estimate.offset) * self.in_mm
                total = total - np.einsum("ki,ij,kj->k", apart, precision, apart) / 2
            return total

        return of

    def _precision(self, estimate: OffsetEstimate | None) -> np.ndarray:
        """Return the precision (6, 6; mm) that another estimate adds to that of an offset."""
        if estimate is None:
            return np.zeros((6, 6))
        return np.linalg.inv(estimate.covariance * np.outer(self.in_mm, self.in_mm))

    def apart(self, offset: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the twist (mm, rad) from one offset to another, (6,)."""
        return log_rigid(np.linalg.inv(offset) @ other, self.center)

    def squared(self, offset: np.ndarray, estimate: OffsetEstimate) -> float:
        """Squared distance of an offset from an estimate over its variance."""
        apart = self.apart(offset, estimate.offset)
        return float(apart @ np.linalg.solve(estimate.covariance, apart))

    def rest_misfit(self, estimate: OffsetEstimate, prior: MotionPrior) -> float:
        """Least squared step at the changes of frame, over the variance of a head at rest."""
        change, foreseen = self.changes != 0, self.foresee(prior)
        steps = (self.steps(estimate.offset) - foreseen.steps)[change]
        known = estimate.covariance * np.outer(self.in_mm, self.in_mm)
        alone = prior.quiet * self.gaps[change, None] + foreseen.variances[change]
        spread = (prior.axes * alone[:, None]) @ prior.axes.T + known
        return float(np.einsum("ni,nij,nj->n", steps, np.linalg.inv(spread), steps).min())

    def _find_mode(
        self,
        offset: np.ndarray,
        prior: MotionPrior,
        foreseen: Foreseen,
        estimate: OffsetEstimate | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the mode near an offset, and the covariance there (mm, rad)."""
        sign, precision = self.changes, self._precision(estimate)
        to, back = self.visits()
        inside, every_axis = np.ones((6, 6)), np.tile(sign[:, None].astype(float), 6)
        for _ in range(N_ITERATIONS):
            steps = self.steps(offset)
            own = ((steps - foreseen.steps) ** 2).sum(axis=1)
            expected = prior.responsibilities(own / self.gaps) @ (1 / prior.variances)
            own_steps = steps[to], steps[back]
            stays = prior.stays(self._visits_of(to, back, own_steps, foreseen, prior.axes))
            for of_visit in (to, back):
                expected[of_visit] = stays * expected[of_visit] + (1 - stays) / prior.variances[-1]
            pull = prior.weighed(every_axis, self.gaps / expected, self.gaps)
            normal = (prior.axes * (sign @ pull)) @ prior.axes.T + precision
            right = -prior.axes @ (pull * (steps @ prior.axes)).sum(axis=0)
            if estimate is not None:
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

        Each of a few steps may have been a jump, which the curvature at the mode does not show.
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

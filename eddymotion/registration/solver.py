# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton steps, halved where the cost rises and lengthened where they creep.

One loop for a pair of images and for all volumes of a series
(:mod:`eddymotion.estimation.equations.coupled`): what differs is the objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

PARALLEL = 0.8
"""Cosine between consecutive steps from which on they count as one way, there or back."""

FACTORS = (0.3, 5.0)
"""By which a step is shortened or lengthened at most."""

SHARES = (1 - FACTORS[1], 0.75)
"""Of the last step and what became of it, which are taken off the next one."""

MIN_KEPT = 0.5
"""A step may not lose more than this fraction of the points that determine the cost."""

Place = TypeVar("Place")


@dataclass(frozen=True, eq=False)
class Evaluation(ABC):
    """The cost at a place, and the way from there.

    Parameters
    ----------
    cost : float
        What is minimised.
    n_points : int
        Points that determine it.
    hessian : (K, K) array
        Of the cost, in the parameters of a step.
    """

    cost: float
    n_points: int
    hessian: np.ndarray

    @abstractmethod
    def step(self) -> np.ndarray:
        """Return the Gauss-Newton step."""


class Objective(Protocol[Place]):
    """What is minimised, as a function of a place: a matrix, or the motion of a series."""

    @property
    def slack(self) -> float:
        """Rise of the cost that still counts as progress."""

    def evaluate(self, place: Place) -> Evaluation | None:
        """Evaluate at a place; None where there is nothing to see."""

    def moved(self, place: Place, step: np.ndarray) -> Place:
        """Take a step."""

    def length(self, place: Place, step: np.ndarray) -> float:
        """How far a step moves the points, mm."""


@dataclass(eq=False)
class Descent(Generic[Place]):
    """Gauss-Newton, a step at a time: the next place is judged, and refused if it is worse.

    Parameters
    ----------
    objective : Objective
    place : matrix or Motion
        Where to start, later the last place that was no worse than the best before.
    tolerance : float
        Length of a step, or of the way that is left, mm, below which it is the last.
    reach : float, optional
        Up to which length, mm, steps that creep are lengthened; none is when not given.
    creeps : bool
        Whether a place is compared with the one before, not with the best: weights that follow the
        residuals let the cost rise a little where the equations of a step lead.
    mixes : bool
        Whether each step is mixed with the last one; see :class:`MixedStep`.

    Attributes
    ----------
    trial : matrix or Motion
        The next place.
    costs : list of float
        Of all places that were accepted.
    length : float
        Of the step from `place` to `trial`, mm.
    whole : float
        The same before it was halved.
    halved : bool
        Whether the last trial was refused.
    ended : bool
    n_steps : int
    """

    objective: Objective[Place]
    place: Place
    tolerance: float
    reach: float | None = None
    creeps: bool = False
    mixes: bool = False
    trial: Place = field(init=False)
    costs: list[float] = field(default_factory=list, init=False)
    length: float = field(default=np.inf, init=False)
    whole: float = field(default=0.0, init=False)
    halved: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    n_steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.trial = self.place
        self._change, self._n_points = np.zeros(0), 0
        self._last: ExtrapolatedStep | None = None
        self._mixed: MixedStep | None = None

    def run(self, max_steps: int, progress: Callable[..., Iterable[int]] | None = None) -> None:
        """Step until it ends, at most `max_steps` times.

        Parameters
        ----------
        max_steps : int
        progress : callable, optional
            A :class:`~eddymotion.machine.parallel.Progress` with its description.
        """
        steps: Iterable[int] = range(max_steps)
        for _ in progress(steps, total=max_steps) if progress else steps:
            self.step()
            if self.ended:
                break

    def step(self) -> None:
        """Judge the trial, and choose the next one."""
        found = self.objective.evaluate(self.trial)
        self.n_steps += 1
        if found is not None and self.accepts(found.cost, found.n_points):
            self.halved, self.place, self._n_points = False, self.trial, found.n_points
            self.costs.append(found.cost)
            self._change, before = self._next(found), self.length
            alone = self.objective.length(self.place, self._change)
            if self.mixes:
                self._mixed = MixedStep.of(self._change, found.hessian, self._mixed)
                self._change = self._mixed.taken
            self.whole = self.length = self.objective.length(self.place, self._change)
            left = way_left(before, self.length) if self.reach is None else self.length
            self.ended = min(alone, left) < self.tolerance
        elif not self.costs:
            self.ended = True
            return
        else:
            self.halved, self._last, self._mixed = True, None, None
            self._change, self.length = self._change / 2, self.length / 2
            self.ended = self.length < self.tolerance
        self.trial = self.objective.moved(self.place, self._change)

    def go_to_last(self, cost: Callable[[Place], float]) -> None:
        """Go to the trial, which nothing has judged yet, unless it is far and its cost higher."""
        if self.ended and not self.halved:
            self.place = self.trial
        elif not (found := cost(self.trial)) > self._highest:
            self.place = self.trial
            self.costs.append(found)

    def __str__(self) -> str:
        first, lowest = self.costs[0] if self.costs else np.nan, min(self.costs, default=np.inf)
        return (
            f"{self.n_steps} steps, the last of {self.length:.2g} mm; "
            f"cost {first:.3f} → {lowest:.3f}"
        )

    def accepts(self, cost: float, n_points: int) -> bool:
        """Whether another place is as good, but for the slack, and shows enough."""
        return cost <= self._highest and n_points >= MIN_KEPT * self._n_points

    @property
    def _highest(self) -> float:
        """The cost that is still as good."""
        best = self.costs[-1:] if self.creeps else self.costs
        return min(best, default=np.inf) + self.objective.slack

    def _next(self, found: Evaluation) -> np.ndarray:
        """Return the step from the place, longer where the last ones went the same way."""
        step = found.step()
        if self.reach is None:
            return step
        longest = max(1.0, self.reach / (self.objective.length(self.place, step) + 1e-12))
        self._last = ExtrapolatedStep.of(step, found.hessian, self._last, longest)
        return self._last.factor * step


def way_left(before: float, length: float) -> float:
    """Return what steps that go on shrinking as the last two did will add up to.

    The sum of a geometric series. Steps along what the data hardly determine shrink slowly, and
    the way that is left is longer than the last of them; others shrink tenfold each time.
    """
    return length**2 / (before - length) if length < before < np.inf else np.inf


@dataclass(frozen=True, eq=False)
class ExtrapolatedStep:
    """A step, and the factor that lengthens it, since the last ones pointed the same way.

    Where a Hessian is too large by a factor, steps shrink from one to the next by a constant
    ratio; where it is too small, each goes back a part of the last. Aitken's extrapolation jumps
    to where they lead.
    """

    step: np.ndarray
    factor: float = 1.0

    @classmethod
    def of(
        cls, step: np.ndarray, hessian: np.ndarray, last: ExtrapolatedStep | None, longest: float
    ) -> ExtrapolatedStep:
        """Lengthen a step judging by the `last` one, at most by a factor."""
        if last is None:
            return cls(step)
        across = step @ hessian @ last.step
        before, now = (p @ hessian @ p for p in (last.step, step))
        if before <= 0 or now <= 0 or abs(across) < PARALLEL * np.sqrt(before * now):
            return cls(step)
        left = max(1 - across / before, last.factor / FACTORS[1])
        return cls(step, min(float(np.clip(last.factor / left, *FACTORS)), longest))


@dataclass(frozen=True, eq=False)
class MixedStep:
    """A step, and the one that is taken, mixed with the last as in Anderson's acceleration.

    Steps of many volumes do not point the same way, but those along what the data hardly determine
    shrink slowly, while the others are gone. By as much as the last step changed them, what is
    left of the way is longer, or shorter where they go back and forth.
    """

    step: np.ndarray
    taken: np.ndarray

    @classmethod
    def of(cls, step: np.ndarray, hessian: np.ndarray, last: MixedStep | None) -> MixedStep:
        """Mix a step with the last one, if there is one."""
        if last is None:
            return cls(step, step)
        change = step - last.step
        turned = hessian @ change.ravel()
        power = float(change.ravel() @ turned)
        share = np.clip(step.ravel() @ turned / power, *SHARES) if power > 0 else 0.0
        return cls(step, step - share * (last.taken + change))

# SPDX-License-Identifier: Apache-2.0
"""Steps to the course of the head, damped volume by volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.estimation.within_volumes.equations import CourseEquations, CourseProblem
from eddymotion.estimation.within_volumes.increments import Increments
from eddymotion.estimation.within_volumes.system import CourseSystem, Posterior

LEAST_LEVENBERG, MOST_LEVENBERG = 1e-3, 3.0
COST_SLACK = 0.02
"""Least rise of the cost of a volume that counts as a rise."""

TRIES = 3
"""Attempts at a step that is too long for its linearisation."""


@dataclass(frozen=True, eq=False)
class FoundCourse:
    """The course of the head.

    Parameters
    ----------
    twists : (K, 6) array
    increments : Increments
        With learnt scales.
    posterior : Posterior
    discord : (N,) array
        As of :class:`~eddymotion.estimation.within_volumes.equations.CourseEquations`.
    n_steps : int
    step : float
        The last one, mm.
    """

    twists: np.ndarray
    increments: Increments
    posterior: Posterior
    discord: np.ndarray
    n_steps: int
    step: float

    def __str__(self) -> str:
        within, between, rest = (np.sqrt((scale**2).mean()) for scale in self.increments.scale)
        return (
            f"{self.n_steps} steps, the last of {self.step:.2g} mm; from knot to knot "
            f"{within:.3f} mm within volumes, {between:.3f} between, {rest:.3f} beside rest"
        )


@dataclass(frozen=True)
class CourseStepping:
    """Control of the steps at a level.

    Parameters
    ----------
    n_steps : int
        At most.
    tolerance : float
        Root-mean-square step, mm, at which it ends.
    longest : float
        Of a knot, mm; longer ones are damped.
    levenberg : float
        Damping to begin with.
    """

    n_steps: int
    tolerance: float
    longest: float
    levenberg: float


def solve_course(
    problem: CourseProblem,
    twists: np.ndarray,
    increments: Increments,
    stepping: CourseStepping,
) -> FoundCourse:
    """Iterate from the twists (K, 6) of the knots.

    A step is judged by its length, and by the misfit of each volume. The misfit also depends on
    the positions of the slices, so that a lower total does not mean a better course.
    """
    away = problem.points - problem.center
    radius = np.sqrt((away**2).sum(axis=1).mean())
    in_mm = np.array([1.0] * 3 + [radius] * 3)
    damping = np.full(problem.n_volumes, stepping.levenberg)
    least = np.full(problem.n_volumes, np.inf)
    for n_steps in range(1, stepping.n_steps + 1):
        equations = problem.linearise(twists)
        worse = equations.cost > least + COST_SLACK
        damping = np.where(worse, 4 * damping, damping / 4)
        damping = np.clip(damping, LEAST_LEVENBERG, MOST_LEVENBERG)
        least = np.minimum(equations.cost, least + COST_SLACK)
        weights = increments.weights(twists)
        step, posterior, damping = _step(
            problem, equations, twists, increments, weights, damping, stepping.longest / in_mm
        )
        twists = twists + step
        length = float(np.sqrt(((step * in_mm) ** 2).sum(axis=1).mean()))
        if n_steps > 1:
            increments = increments.learnt(twists, weights, posterior.of_increments)
        if length < stepping.tolerance:
            break
    return FoundCourse(twists, increments, posterior, equations.discord, n_steps, length)


def _step(
    problem: CourseProblem,
    equations: CourseEquations,
    twists: np.ndarray,
    increments: Increments,
    weights: np.ndarray,
    damping: np.ndarray,
    longest: np.ndarray,
) -> tuple[np.ndarray, Posterior, np.ndarray]:
    """Take a step (K, 6), damped until no knot goes too far.

    Returns
    -------
    step : (K, 6) array
    posterior : Posterior
    damping : (N,) array
    """
    right = -np.einsum("kab,ka->kb", equations.turn, equations.gradient)
    for axis, precision in enumerate(increments.precision(weights)):
        right[:, axis] -= precision @ twists[:, axis]
    for _ in range(TRIES):
        system = CourseSystem(equations, increments, weights, damping)
        step = equations.without_common(system.solve(right))
        far = np.sqrt(((step / longest) ** 2).sum(axis=1)) > 1
        if not far.any():
            break
        ran = np.unique(problem.knots.volume[far])
        damping = damping.copy()
        damping[ran] = np.minimum(10 * damping[ran], MOST_LEVENBERG)
    return step, system.posterior, damping

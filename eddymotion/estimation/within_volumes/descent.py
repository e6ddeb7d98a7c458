# SPDX-License-Identifier: Apache-2.0
"""Steps to the course of the head, damped volume by volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from eddymotion.estimation.within_volumes.equations import AXES, CourseEquations, CourseProblem
from eddymotion.estimation.within_volumes.increments import Increments
from eddymotion.estimation.within_volumes.knots import Knots

DAMPING = 1e-6
ABSOLUTE_DAMPING = 1e-3
"""Precision (1/mm²) with which every unknown is held at its place."""

LEAST_LEVENBERG, MOST_LEVENBERG = 1e-3, 3.0
COST_SLACK = 0.02
"""Rise of the cost of a volume that counts as one."""

TRIES = 3
"""Of a step that is too long for its linearisation."""


@dataclass(frozen=True, eq=False)
class FoundCourse:
    """The course of the head.

    Parameters
    ----------
    twists : (K, 6) array
    increments : Increments
        Their scales learnt.
    covariance : (K, 6, K, 6) array
        Of the posterior.
    n_steps : int
    step : float
        The last one, mm.
    """

    twists: np.ndarray
    increments: Increments
    covariance: np.ndarray
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
    """How far the steps of a level go.

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

    A step is judged by its length alone, and by the misfit of each volume: what reading costs
    depends on how the slices lie, so that the misfit of all does not tell a better course.
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
        step, covariance, damping = _step(
            problem, equations, twists, increments, weights, damping, stepping.longest / in_mm
        )
        twists = twists + step
        length = float(np.sqrt(((step * in_mm) ** 2).sum(axis=1).mean()))
        if n_steps > 1:
            increments = increments.learnt(twists, weights, covariance)
        if length < stepping.tolerance:
            break
    return FoundCourse(twists, increments, covariance, n_steps, length)


def _step(
    problem: CourseProblem,
    equations: CourseEquations,
    twists: np.ndarray,
    increments: Increments,
    weights: np.ndarray,
    damping: np.ndarray,
    longest: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take a step (K, 6), damped until no knot goes too far.

    Returns
    -------
    step : (K, 6) array
    covariance : (K, 6, K, 6) array
    damping : (N,) array
    """
    n_rows = len(twists)
    right = -np.einsum("kab,ka->kb", equations.turn, equations.gradient)
    matrix = equations.of_twists(equations.hessian)
    diagonal = np.diag(matrix)
    held = DAMPING * np.maximum(diagonal, 1e-6 * diagonal.max())
    held = held + np.tile(ABSOLUTE_DAMPING * increments.in_mm**2, n_rows)
    matrix[np.diag_indices_from(matrix)] += held
    blocks = matrix.reshape(n_rows, 6, n_rows, 6)
    for axis, precision in enumerate(increments.precision(weights)):
        right[:, axis] -= precision @ twists[:, axis]
        blocks[:, axis, :, axis] += precision.toarray()
    for _ in range(TRIES):
        damped = matrix + equations.of_twists(_levenberg(problem, equations, damping))
        factor = linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
        step = linalg.cho_solve(factor, right.ravel(), check_finite=False).reshape(n_rows, 6)
        step = equations.without_common(step)
        far = np.sqrt(((step / longest) ** 2).sum(axis=1)) > 1
        if not far.any():
            break
        ran = np.unique(problem.knots.volume[far])
        damping = damping.copy()
        damping[ran] = np.minimum(10 * damping[ran], MOST_LEVENBERG)
    inverse, _ = linalg.lapack.dpotri(factor[0], lower=True)
    covariance = np.tril(inverse) + np.tril(inverse, -1).T
    return step, covariance.reshape(n_rows, 6, n_rows, 6), damping


def _levenberg(
    problem: CourseProblem, equations: CourseEquations, damping: np.ndarray
) -> np.ndarray:
    """Hold what a volume does unlike the others of its group, (K, 6, K, 6)."""
    knots = problem.knots
    n_rows = knots.n_rows
    diagonal = np.einsum("kaka->ka", equations.hessian)
    diagonal = np.maximum(diagonal, 1e-6 * diagonal.max(axis=0))
    found = np.zeros((n_rows, 6, n_rows, 6))
    for member in problem.members:
        own = Knots(knots.basis, knots.moving[member.volumes])
        rows = np.unique(knots.row[member.volumes])
        shared = np.where(own.moving, 1, own.n_knots)[own.volume]
        strength = (damping[member.volumes][own.volume] / shared)[:, None] * diagonal[rows]
        of_knots = strength[own.row]  # (n, M, 6)
        n = len(member.volumes)
        common = own.summed(np.einsum("nma,mp->nmap", of_knots, np.eye(own.n_knots)))
        total = of_knots.sum(axis=0)
        for axis in range(6):
            once = common[:, axis] @ own.held.T / n
            twice = (own.held * total[:, axis]) @ own.held.T / n**2
            block = np.diag(strength[:, axis] * shared) - once - once.T + twice
            found[np.ix_(rows, AXES[[axis]], rows, AXES[[axis]])] += block[:, None, :, None]
    return found

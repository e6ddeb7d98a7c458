# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton steps, halved where the cost rises and lengthened where they creep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.mapping.registration import Registration
from eddymotion.registration.metrics import Step
from eddymotion.registration.problem import Problem

PARALLEL = 0.8
"""Cosine between consecutive steps from which on they count as one way, there or back."""

FACTORS = (0.3, 5.0)
"""By which a step is shortened or lengthened at most."""

MAX_REACH = 0.25
"""Up to which share of the width (FWHM) of the level a step is lengthened."""

MIN_KEPT = 0.5
"""A step may not lose more than this share of the points that both images show."""


SMALL = 20.0
"""Up to so many tolerances a step that only raises the cost counts as none."""


@dataclass(frozen=True, eq=False)
class SolverState:
    """Where a level is, and how it got there.

    Parameters
    ----------
    matrix : (4, 4) array
    costs : tuple of float
        After each accepted step.
    step : float
        Length of the last step, mm.
    n_points : int
        With a counterpart in the other image.
    refused : float
        Length of the step that was halved until nothing was left of it, mm.
    """

    matrix: np.ndarray
    costs: tuple[float, ...] = ()
    step: float = np.inf
    n_points: int = 0
    refused: float = 0.0

    def accepts(self, step: Step, n_points: int, slack: float) -> bool:
        """Whether another place is as good, but for `slack`, and shows enough in common."""
        if not self.costs:
            return True
        return step.cost <= min(self.costs) + slack and n_points >= MIN_KEPT * self.n_points

    def result(self, n_iterations: int, tolerance: float) -> Registration:
        """Say it in words."""
        if not self.costs:
            converged, message = False, "stopped: the images do not overlap enough"
        elif self.refused > SMALL * tolerance:
            converged = False
            message = f"stopped: neither a step of {self.refused:.2g} mm nor a part of it helps"
        elif self.step < tolerance:
            converged = True
            message = f"converged: last step {self.step:.2g} mm is below {tolerance:.2g} mm"
        else:
            converged = False
            message = f"stopped at the iteration limit: last step {self.step:.2g} mm"
        if self.costs:
            message += (
                f" after {n_iterations} iterations; "
                f"cost {self.costs[0]:.4f} → {self.costs[-1]:.4f}"
            )
        return Registration(self.matrix, converged, message, self.costs, n_iterations)


@dataclass(frozen=True)
class Solver:
    """Gauss-Newton with halved steps.

    Parameters
    ----------
    max_iterations : int
    tolerance : float
        Length of the last step, mm.
    """

    max_iterations: int
    tolerance: float

    def solve(self, problem: Problem, matrix: np.ndarray) -> SolverState:
        """Iterate to convergence; a step that raises the cost is halved, then given up."""
        group, center = problem.view.group, problem.there.center
        reach = MAX_REACH * problem.view.width
        best, length, whole = SolverState(matrix), np.inf, 0.0
        parameters = np.zeros(group.basis.shape[1])
        extrapolated: ExtrapolatedStep | None = None
        for _ in range(self.max_iterations):
            evaluated = problem.step(matrix)
            if evaluated is None and not best.costs:
                break
            accepted = evaluated is not None and best.accepts(*evaluated, problem.slack)
            if evaluated is not None and accepted:
                step = evaluated[0]
                best = replace(best, matrix=matrix, n_points=evaluated[1],
                               costs=(*best.costs, step.cost))  # fmt: skip
                extrapolated = ExtrapolatedStep.of(step, extrapolated)
                longest = max(1.0, reach / (problem.length(matrix, extrapolated.step) + 1e-12))
                extrapolated = replace(extrapolated, factor=min(extrapolated.factor, longest))
                parameters = extrapolated.factor * extrapolated.step
                whole = length = problem.length(matrix, parameters)
            else:
                parameters, length, extrapolated = parameters / 2, length / 2, None
            matrix = best.matrix @ group.exp(parameters, center)
            if length < self.tolerance:
                if accepted:
                    return replace(best, matrix=matrix, step=length)
                return replace(best, step=length, refused=whole)
        return replace(best, step=length)


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
    def of(cls, found: Step, last: ExtrapolatedStep | None) -> ExtrapolatedStep:
        """Solve for the next step, after the `last` one."""
        step = found.solve()
        if last is None:
            return cls(step)
        across = step @ found.hessian @ last.step
        before, now = (p @ found.hessian @ p for p in (last.step, step))
        if before <= 0 or now <= 0 or abs(across) < PARALLEL * np.sqrt(before * now):
            return cls(step)
        left = max(1 - across / before, last.factor / FACTORS[1])
        return cls(step, float(np.clip(last.factor / left, *FACTORS)))

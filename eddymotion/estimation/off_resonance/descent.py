# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton equations of field, poses and gains, and the steps that they lead to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.estimation.off_resonance.problem import FieldProblem
from eddymotion.estimation.off_resonance.view import FieldState, FieldView
from eddymotion.images.lattice import conjugate_gradients, separable

SEEN_SLOPE = 0.3
"""Cosine of the angle to a phase encoding from which on an axis of the lattice enters the normal
operator: rotations of the head between images leave the others little to say."""

CONVERGED_VOXELS = 0.01
"""Root-mean-square change of the displacement at which a level ends."""

HALVINGS = 5
"""How often a step is tried, each time at half its length, until it lowers the cost."""

CG_TOLERANCE, CG_STEPS = 0.04, 30
"""Where conjugate gradients end. With 60 or 120 steps fields are no better, with 20 some worse."""


@dataclass(frozen=True, eq=False)
class FieldEquations:
    """The Gauss-Newton equations at a state: field first, then B of pose and gain an image.

    Parameters
    ----------
    problem : FieldProblem
    terms : tuple of int
        Which matrices of the problem the operator uses: the field, and slopes along some axes.
    maps : dict
        Pairs of these → (X, Y, Z) weights.
    coupling : (B (K − 1), M) array
        Border against field.
    border : (B (K − 1), B (K − 1)) array
    right : (M + B (K − 1),) array
        Minus half the gradient of the cost.
    """

    problem: FieldProblem
    terms: tuple[int, ...]
    maps: dict[tuple[int, int], np.ndarray]
    coupling: np.ndarray
    border: np.ndarray
    right: np.ndarray

    @classmethod
    def of(
        cls, problem: FieldProblem, view: FieldView, state: FieldState, variance: float
    ) -> FieldEquations:
        """Set up the equations.

        The right side has the slopes along all axes: where steps end is exact. The operator leaves
        out axes that hardly matter.
        """
        weight = np.float32(problem.volume / variance)
        toward = view.shifts @ problem.to_axes.T  # slope along p by slopes along the axes
        by_term = [view.by_field, *(view.by_slope * toward[:, axis, None].astype(np.float32)
                                    for axis in range(3))]  # fmt: skip
        seen = tuple(axis + 1 for axis in range(3) if np.abs(toward[:, axis]).max() > SEEN_SLOPE)
        terms = (0, *seen)
        centred = {term: view.centred(by_term[term]) for term in terms}
        maps = {
            (a, b): problem.on_grid((centred[a] * centred[b]).sum(axis=0) * weight)
            for a in terms for b in terms if a <= b
        }  # fmt: skip
        forces = [
            problem.on_grid((derivative * view.residuals).sum(axis=0) * weight)
            for derivative in by_term
        ]
        right = problem.stiffness * problem.lattice.bent(state.coefficients)
        right = right + problem.gathered(dict(enumerate(forces)))
        columns, owners = _columns(view, problem.shading)
        weighed = columns * weight
        border = (weighed @ columns.T) * (owners[:, None] == owners)
        shared = columns / np.sqrt(view.n_seen)
        border = border - (shared * weight) @ shared.T
        coupling = np.stack([
            problem.gathered(
                {term: problem.on_grid(column * centred[term][owner]) for term in terms}
            ).ravel()
            for column, owner in zip(weighed, owners, strict=True)
        ])  # fmt: skip
        pull = np.einsum("mp,mp->m", weighed, view.residuals[owners]).astype(float)
        border = border.astype(float)
        pull = pull + problem.prior(border, state)
        return cls(problem, terms, maps, coupling, border,
                   -np.concatenate([right.ravel(), pull]).astype(float))  # fmt: skip

    def normal(self, x: np.ndarray) -> np.ndarray:
        """Apply the operator to a vector (M + B (K − 1),)."""
        problem, n = self.problem, self.coupling.shape[1]
        c, rest = x[:n].reshape(problem.lattice.shape).astype(np.float32), x[n:]
        values = {term: separable(problem.matrices[term], c) for term in self.terms}
        out = {
            a: sum(self.maps[min(a, b), max(a, b)] * values[b] for b in self.terms)
            for a in self.terms
        }  # fmt: skip
        field = problem.gathered(out) + problem.stiffness * problem.lattice.bent(c)
        return np.concatenate([
            field.ravel() + rest @ self.coupling, self.border @ rest + self.coupling @ x[:n]
        ])  # fmt: skip

    def solution(self) -> np.ndarray:
        """Solve for the step."""
        problem, n = self.problem, self.coupling.shape[1]
        n_points = max(len(problem.points), 1) * problem.volume
        mean = {term: float(self.maps[term, term].sum(dtype=float)) / n_points
                for term in self.terms}  # fmt: skip
        slopes = [mean.get(axis + 1, 0.0) / 2 for axis in range(3)]
        of_field = problem.lattice.preconditioner(
            max(mean[0] / 2, 1e-12), slopes, problem.stiffness
        )
        of_border = np.linalg.inv(self.border)

        def precondition(x: np.ndarray) -> np.ndarray:
            field = of_field(x[:n].reshape(problem.lattice.shape))
            return np.concatenate([field.ravel(), of_border @ x[n:]])

        return conjugate_gradients(
            self.normal, self.right, precondition, tolerance=CG_TOLERANCE, limit=CG_STEPS
        )


def _columns(view: FieldView, shading: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List derivatives by the pose and gain of all images but the first, and whose they are."""
    parts, owners = [], []
    for number, by_pose in enumerate(view.by_pose, start=1):
        parts += [by_pose, view.values[number] * shading]
        owners += [number] * (len(by_pose) + len(shading))
    return np.concatenate(parts) * view.seen[owners], np.array(owners)


def descend(problem: FieldProblem, state: FieldState, steps: int) -> tuple[FieldState, float]:
    """Take steps until they are small; return the noise, too."""
    view = problem.view(state)
    variance = np.inf
    voxel = float(problem.images[0].image.voxel_sizes.min())
    reach = max(one.readout.mm_per_hertz for one in problem.images)
    for _ in range(steps):
        variance = min(variance, problem.variance(view))
        cost = problem.cost(view, state, variance)
        step = FieldEquations.of(problem, view, state, variance).solution()
        for halved in range(HALVINGS):
            moved = problem.moved(state, step, 0.5**halved)
            there = problem.view(moved)
            if problem.cost(there, moved, variance) < cost * (1 + 1e-5):
                break
        else:
            break
        change = separable(problem.matrices[0], moved.coefficients - state.coefficients)
        state, view = moved, there
        rms = float(np.sqrt((change[problem.counts] ** 2).mean()))
        if rms * reach < CONVERGED_VOXELS * voxel:
            break
    return state, float(np.sqrt(variance))

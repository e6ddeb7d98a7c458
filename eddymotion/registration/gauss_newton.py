"""Rigid registration by Gauss-Newton, coarse to fine.

At level ``k`` both images are band-passed and the moving one is modelled, at random points ``x``
of the fixed mask and in first order of a small motion ``δ`` around the present matrix ``T``, as ::

    m(T x) ≈ a f(x) + c − a ∇f(x)·δ(x),     δ(x) = t + ω × (x − x₀)

which is linear in ``a``, ``c``, ``a t`` and ``a ω``: intensity scale and offset and the motion are
one weighted least-squares solution with eight unknowns. Then ``T ← T exp(δ)``. Three choices
matter:

- *Points off the grid.* Interpolation averages noise most half-way between voxels, so a cost
  sampled on the grid is drawn there; random sub-voxel positions make the noise independent of
  ``T``.
- *The gradient of the fixed image*, the prediction from many volumes: the moving volume's own
  noise would enlarge the normal matrix and shorten every step. It also never changes, so a step
  costs one sampling of the moving image.
- *A band-pass at the finest level.* What a prediction gets wrong is smooth in space and would pull
  as a false shift.

Student-t weights (one degree of freedom) take care of what has no counterpart in the other image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.dataset import Image
from eddymotion.errors import EddymotionError
from eddymotion.geometry import exp_rigid
from eddymotion.pyramid import MIN_POINTS, Level, band_pass, head_scale, jittered_points
from eddymotion.registration.base import Registration

COST_SLACK = 1e-3
"""Rise of the cost (−log-likelihood a point) that still counts as progress: near the optimum the
robust scale jitters by more than a step gains."""

COARSE_TO_FINE = (
    Level(16.0, 3_000),
    Level(8.0, 6_000),
    Level(4.0, 10_000),
    Level(1.0, 25_000, highpass=3.0),
)
"""The coarse widths scale with the head, since they must cover its motion; the finest band scales
with the voxel, since that is the scale of the noise and of the finest detail."""

REFINE = COARSE_TO_FINE[-1:]
"""For a pair that is known to be within about two voxels."""


@dataclass(frozen=True)
class GaussNewton:
    """Rigid Gauss-Newton registration with intensity scale and offset.

    Parameters
    ----------
    levels : sequence of Level
        Coarse to fine.
    max_iterations : int
        At each level.
    tolerance : float
        Length of the last step, as mean displacement over the mask in voxels, at which a level
        ends.
    """

    levels: tuple[Level, ...] = COARSE_TO_FINE
    max_iterations: int = 25
    tolerance: float = 0.0005

    def __post_init__(self) -> None:
        numbers = (self.max_iterations, self.tolerance)
        if not all(isinstance(number, (int, float)) and number > 0 for number in numbers):
            raise EddymotionError(
                f"registration: max_iterations {self.max_iterations!r} and tolerance "
                f"{self.tolerance!r} must be numbers above zero"
            )
        if not self.levels:
            raise EddymotionError("registration: no levels given, expected at least one")

    def register(
        self,
        fixed: Image,
        moving: Image,
        *,
        fixed_mask: np.ndarray | None = None,
        init: np.ndarray | None = None,
        seed: int = 0,
    ) -> Registration:
        """Register a pair; see :meth:`eddymotion.registration.Registrar.register`."""
        mask = _nonzero(fixed) if fixed_mask is None else np.asarray(fixed_mask, bool)
        voxel = float(np.cbrt(np.prod(fixed.voxel_sizes)))
        scale = head_scale(mask, fixed.voxel_sizes)
        center = apply_affine(fixed.affine, np.argwhere(mask).mean(axis=0))
        random = np.random.default_rng(seed)
        matrix = np.eye(4) if init is None else np.array(init, dtype=float)
        costs: list[float] = []
        n_iterations, step = 0, np.inf
        for level in self.levels:
            points = jittered_points(mask, fixed.affine, level.n_points, random)
            problem = _LevelProblem.build(
                band_pass(fixed, level, scale),
                band_pass(moving, level, scale),
                points,
                center,
            )
            matrix, costs, step = problem.solve(
                matrix, self.max_iterations, self.tolerance * voxel
            )
            n_iterations += len(costs)
        return _result(matrix, costs, n_iterations, step, self.tolerance * voxel)


def _result(
    matrix: np.ndarray, costs: list[float], n_iterations: int, step: float, tolerance: float
) -> Registration:
    if not costs:
        converged, message = False, "stopped: the images do not overlap enough"
    elif step < tolerance:
        converged = True
        message = f"converged: last step {step:.2g} mm is below {tolerance:.2g} mm"
    else:
        converged = False
        message = f"stopped at the iteration limit: last step {step:.2g} mm"
    if costs:
        message += f" after {n_iterations} iterations; cost {costs[0]:.4f} → {costs[-1]:.4f}"
    return Registration(matrix, converged, message, tuple(costs), n_iterations)


@dataclass(frozen=True, eq=False)
class _LevelProblem:
    """One level: everything about the fixed image is computed once."""

    points: np.ndarray
    center: np.ndarray
    moving: Image
    columns: np.ndarray  # (P, 8): f, 1, −∇f·∂δ/∂t, −∇f·∂δ/∂ω

    @classmethod
    def build(
        cls, fixed: Image, moving: Image, points: np.ndarray, center: np.ndarray
    ) -> _LevelProblem:
        values, slopes = fixed.spline.sample_with_gradient(points)
        usable = np.isfinite(values)
        points, values, slopes = points[usable], values[usable], slopes[usable]
        ones = np.ones_like(values)
        columns = np.column_stack(
            [values, ones, -slopes, -np.cross(points - center, slopes)]
        ).astype(float)
        return cls(points, center, moving, columns)

    def solve(
        self, matrix: np.ndarray, max_iterations: int, tolerance: float
    ) -> tuple[np.ndarray, list[float], float]:
        """Iterate to convergence; a step that raises the cost is halved, then given up."""
        costs: list[float] = []
        extent = self.points - self.center
        radius = np.sqrt((extent**2).sum(axis=1).mean())
        best, best_cost = matrix, np.inf
        step = np.inf
        twist = np.zeros(6)
        for _ in range(max_iterations):
            try:
                evaluated = self._evaluate(matrix)
            except np.linalg.LinAlgError:  # nothing to see at this level: constant images
                evaluated = None
            if evaluated is None:
                break
            cost, new_twist = evaluated
            if cost > best_cost + COST_SLACK:
                twist /= 2
                step = _length(twist, radius)
                if step < tolerance:
                    matrix = best
                    break
                matrix = best @ exp_rigid(twist, self.center)
                continue
            costs.append(cost)
            best, best_cost, twist = matrix, cost, new_twist
            step = _length(twist, radius)
            matrix = best @ exp_rigid(twist, self.center)
            if step < tolerance:
                break
        return (matrix if step < tolerance else best), costs, step

    def _evaluate(self, matrix: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Cost at `matrix` and the Gauss-Newton step from there."""
        moved = self.moving.spline.sample(self.points, matrix)
        inside = np.isfinite(moved)
        if inside.sum() < MIN_POINTS:
            return None
        y, X = moved[inside].astype(float), self.columns[inside]
        weights = np.ones_like(y)
        floor = 1e-6 * y.std() + np.finfo(float).tiny
        for _ in range(2):  # intensities first, so that the weights know the scale
            coefficients = _weighted_solution(X[:, :2], y, weights)
            residual = y - X[:, :2] @ coefficients
            scale = np.median(np.abs(residual)) + floor  # that of a Cauchy distribution
            weights = 1.0 / (1.0 + (residual / scale) ** 2)
        cost = np.log(scale) - np.log(weights).mean()  # −log-likelihood a point
        solution = _weighted_solution(X, y, weights)
        gain = solution[0] if abs(solution[0]) > 1e-3 * abs(coefficients[0]) else coefficients[0]
        if gain == 0:
            return None
        return float(cost), solution[2:] / gain


def _weighted_solution(X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    scale = np.sqrt((X**2).mean(axis=0)) + np.finfo(float).tiny
    scaled = X / scale
    weighted = scaled * weights[:, None]
    normal = scaled.T @ weighted
    normal[np.diag_indices_from(normal)] *= 1 + 1e-6
    return np.linalg.solve(normal, weighted.T @ y) / scale


def _length(twist: np.ndarray, radius: float) -> float:
    """Upper bound of the RMS displacement of the points, mm."""
    return float(np.linalg.norm(twist[:3]) + radius * np.linalg.norm(twist[3:]))


def _nonzero(image: Image) -> np.ndarray:
    return np.isfinite(image.data) & (image.data != 0)

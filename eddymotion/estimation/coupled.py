"""Gauss-Newton on the poses of all volumes of a group at once.

At points ``x`` of the head let ``y(x)`` hold the N volumes, each read at ``T_i x``, and let ``P``
be the precision of the signal model (:mod:`eddymotion.models.base`). The restricted likelihood of
the series is, up to constants, ::

    E(T) = Σ_x w(x) y(x)ᵀ P y(x)

With ``T_i ← T_i exp(−δ_i)``, δ = (t, ω) about the centre of the brain, the volume changes by
``−J_i δ_i``, ``J_i = [∇y_i, (x − x₀) × ∇y_i]``; minimising E over all δ gives ::

    Σ_j H_ij δ_j = G_i,    G_i = Σ_x w J_i (Py)_i,    H_ij = P_ij Σ_x w J_i J_jᵀ

Minimising over one δ_i with the others held is the leave-one-out loop: ``(Py)_i / P_ii`` is the
residual of volume ``i`` against its prediction from the others.

- ``J`` is built from the model's own estimate of each volume, ``∇(y − Py)`` (the posterior mean,
  as noise has unit variance here), or from its leave-one-out prediction, ``∇(y − Py/P_ii)``: with
  the gradients of the noisy volumes the normal matrix is too large and the steps too short.
- ``w`` are Student-t weights with one degree of freedom of ``q = yᵀPy / N``, a weight a point.
- Where a volume says nothing (outside its image, in a slice that lost its signal) its value is the
  one that the others predict, and its ``J`` is zero: it is left out of that point.
- A motion common to all changes nothing: the mean step is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from nibabel.affines import apply_affine
from scipy import linalg

from eddymotion.dataset import Spline
from eddymotion.estimation.outliers import is_lost
from eddymotion.geometry import exp_rigid
from eddymotion.gradients import Gradients
from eddymotion.models import LinearModel
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.parallel import parallel_iterate, parallel_map
from eddymotion.pyramid import BLOCK_MM, MIN_POINTS, blocks_of

DAMPING = 1e-3
"""Added to the diagonal of the normal matrix, relative to it."""

COST_SLACK = 1e-3
"""Rise of the cost (−log-likelihood a value) that still counts as progress: the weights jitter."""

MAX_MISSING = 0.25
"""A point at which more of the volumes say nothing is left out."""

FILL_ITERATIONS = 6

POINTS_FOR_MODEL = 12_000
"""At most so many points tell the parameters of the model."""

CHUNK_BYTES = 2**23
"""Of the Jacobians that are held at a time by a thread."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What the volumes show at the points, under some poses.

    Parameters
    ----------
    values : (N, V) float32 array
    slopes : (3, N, V) float32 array
        Gradients along the axes of the head's frame, per mm.
    missing : (N, V) bool array
        Where a volume says nothing.
    """

    values: np.ndarray
    slopes: np.ndarray
    missing: np.ndarray


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """The normal equations at some poses.

    Parameters
    ----------
    cost : float
        Mean −log-likelihood of a point.
    gradients : (B, 6N) array
        ``G``, what each block of points adds to it.
    hessian : (6N, 6N) array
        ``H``
    """

    cost: float
    gradients: np.ndarray
    hessian: np.ndarray

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve for one or more right sides (6N, …), a little damped."""
        diagonal = np.diag(self.hessian).copy()
        diagonal[diagonal <= 1e-9 * diagonal.max()] = np.inf  # volumes that nothing moves
        for damping in (DAMPING, 100 * DAMPING):
            damped = self.hessian + np.diag(np.where(np.isinf(diagonal), 0, damping * diagonal))
            stiff = np.isinf(diagonal)
            damped[stiff] = damped[:, stiff] = 0.0
            damped[stiff, stiff] = 1.0
            try:
                solution = linalg.solve(damped, right, assume_a="pos")
            except linalg.LinAlgError:  # rounding
                continue
            solution[stiff] = 0.0
            return solution
        raise linalg.LinAlgError("the normal equations of the motion are singular")

    def step(self) -> np.ndarray:
        """``δ`` of all volumes, (N, 6), without what they have in common."""
        twists = self.solve(self.gradients.sum(axis=0)).reshape(-1, 6)
        return twists - twists.mean(axis=0)


@dataclass(frozen=True)
class Course:
    """How a problem was solved.

    Parameters
    ----------
    n_iterations : int
    step : float
        The last one, mm.
    first_cost, cost : float
        Mean logarithm of the misfit where it began, and the lowest found.
    """

    n_iterations: int
    step: float
    first_cost: float
    cost: float

    def __str__(self) -> str:
        return (
            f"{self.n_iterations} steps, the last of {self.step:.2g} mm; "
            f"cost {self.first_cost:.3f} → {self.cost:.3f}"
        )


@dataclass(frozen=True, eq=False)
class CoupledProblem:
    """One group of volumes at one level.

    Parameters
    ----------
    splines : sequence of N Spline
        The volumes, band-passed.
    gradients : Gradients
        Of the N volumes, in the scanner's frame.
    model : LinearModel
        Fitted.
    points : (V, 3) array
        In the head's frame, RAS+ mm.
    center : (3,) array
        Centre of the brain, RAS+ mm.
    lost : LostSlices, optional
        Slices without signal.
    block_mm : float
        Edge of the blocks of :meth:`covariances`.
    leave_one_out : bool
        Whether ``J`` comes from leave-one-out predictions instead of the posterior mean.
    n_threads : int
        The result does not depend on it.
    """

    splines: Sequence[Spline]
    gradients: Gradients
    model: LinearModel
    points: np.ndarray
    center: np.ndarray
    lost: LostSlices | None = None
    block_mm: float = BLOCK_MM
    leave_one_out: bool = False
    n_threads: int = 1
    blocks: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        numbers = blocks_of(self.points - self.center, self.block_mm)
        order = np.argsort(numbers, kind="stable")  # neighbours in space are neighbours in memory
        object.__setattr__(self, "points", self.points[order])
        object.__setattr__(self, "blocks", numbers[order])

    def with_model_fitted(self, matrices: np.ndarray) -> CoupledProblem:
        """Fit the model to what the volumes show at the points."""
        points = self.points[:: -(-len(self.points) // POINTS_FOR_MODEL)]

        def read(volume: int) -> np.ndarray:
            values = self.splines[volume].sample(points, matrices[volume])
            if self.lost is not None:
                values[self.lost.at(volume, apply_affine(matrices[volume], points))] = np.nan
            return values

        values = np.stack(parallel_map(read, range(len(matrices)), n_threads=self.n_threads))
        gone = ~np.isfinite(values)
        usable = gone.mean(axis=0) <= MAX_MISSING
        if not usable.any():
            return self
        rotated = self.gradients.rotated(matrices[:, :3, :3])
        # with many lost slices hardly a point is whole
        whole = filled(values[:, usable], gone[:, usable], self.model.precision(rotated))
        scatter = whole @ whole.T / whole.shape[1]
        return replace(self, model=self.model.fit(scatter, rotated))

    def solve(
        self,
        matrices: np.ndarray,
        max_iterations: int,
        tolerance: float,
        progress: Callable[..., Iterable[int]] | None = None,
    ) -> tuple[np.ndarray, Course]:
        """Iterate; a step that raises the cost is halved.

        Parameters
        ----------
        matrices : (N, 4, 4) array
            Where to start.
        max_iterations : int
        tolerance : float
            Root-mean-square step, as mm at the points, at which it ends.
        progress : callable, optional
            A :class:`~eddymotion.parallel.Progress` with its description.

        Returns
        -------
        matrices : (N, 4, 4) array
        course : Course
        """
        radius = np.sqrt(((self.points - self.center) ** 2).sum(axis=1).mean())
        in_mm = np.array([1.0] * 3 + [radius] * 3)
        best, best_cost, twists = matrices, np.inf, np.zeros((len(matrices), 6))
        first_cost = np.nan
        length, iteration = np.inf, 0
        steps: Iterable[int] = range(1, max_iterations + 1)
        for iteration in progress(steps, total=max_iterations) if progress else steps:
            system = self.linearise(matrices)
            if system is None:
                return best, Course(iteration, length, first_cost, best_cost)
            first_cost = system.cost if iteration == 1 else first_cost
            if system.cost > best_cost + COST_SLACK:
                twists = twists / 2
            else:
                best, best_cost, twists = matrices, system.cost, system.step()
            matrices = best @ exp_rigid(-twists, self.center)
            length = float(np.sqrt(((twists * in_mm) ** 2).sum(axis=1).mean()))
            if length < tolerance:
                break
        return matrices, Course(iteration, length, first_cost, best_cost)

    def linearise(self, matrices: np.ndarray) -> NormalEquations | None:
        """Set up the normal equations; None where too few points lie inside the volumes."""
        precision = self.model.precision(self.gradients.rotated(matrices[:, :3, :3]))
        samples = self.sample(matrices)
        residual, misfit = self.residuals(samples, precision)
        usable = samples.missing.mean(axis=0) <= MAX_MISSING
        if usable.sum() < MIN_POINTS:
            return None
        scale = float(np.median(misfit[usable])) + np.finfo(float).tiny
        weights = np.where(usable, 2.0 / (1.0 + misfit / scale), 0.0)
        gradients, hessian = self.normal_equations(samples, residual, weights, precision)
        cost = float(np.log(misfit + scale)[usable].mean())
        return NormalEquations(cost, gradients, hessian)

    def covariances(self, matrices: np.ndarray) -> np.ndarray:
        """Covariance of the error of each pose, (N, 6, 6), by a sandwich over blocks.

        Noise is correlated from point to point and misfit from voxel to voxel, but little between
        parts of the brain that are ``block_mm`` wide. With ``G_b`` what block ``b`` adds to the
        right side, ``H⁻¹ G_b`` is what it adds to the solution, and their scatter is the
        covariance of the solution (Liang & Zeger 1986, Biometrika 73:13).
        """
        system = self.linearise(matrices)
        n = len(matrices)
        if system is None:
            return np.full((n, 6, 6), np.nan)
        parts = system.solve(system.gradients.T).reshape(n, 6, -1)
        parts = parts - parts.mean(axis=0)
        n_blocks = parts.shape[2]
        return np.einsum("nkb,nlb->nkl", parts, parts) * (n_blocks / max(n_blocks - 1, 1))

    def sample(self, matrices: np.ndarray) -> Samples:
        """Read all volumes at the points."""
        n, n_points = len(self.splines), len(self.points)
        values = np.empty((n, n_points), np.float32)
        slopes = np.empty((3, n, n_points), np.float32)
        missing = np.empty((n, n_points), bool)

        def read(volume: int) -> None:
            pose = matrices[volume]
            value, slope = self.splines[volume].sample_with_gradient(self.points, pose)
            gone = ~np.isfinite(value)
            if self.lost is not None:
                gone |= self.lost.at(volume, apply_affine(pose, self.points))
            value[gone] = 0.0
            slope[gone] = 0.0
            missing[volume], values[volume], slopes[:, volume] = gone, value, slope.T

        parallel_map(read, range(n), n_threads=self.n_threads)
        return Samples(values, slopes, missing)

    def residuals(self, samples: Samples, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``Py`` (N, V) and ``q = yᵀPy / N`` (V,); fills missing values with predictions."""
        P = precision.astype(np.float32)
        values = samples.values
        residual = P @ values
        holes = np.flatnonzero(samples.missing.any(axis=0))
        if len(holes):
            gone = samples.missing[:, holes]
            block = filled(values[:, holes], gone, P)
            values[:, holes] = block
            of_block = P @ block
            of_block[gone] = 0.0
            residual[:, holes] = of_block
        misfit = np.einsum("nv,nv->v", values, residual) / len(values)
        return residual, np.maximum(misfit, 0.0)

    def normal_equations(
        self,
        samples: Samples,
        residual: np.ndarray,
        weights: np.ndarray,
        precision: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ``G`` by blocks (B, 6N), and ``H`` (6N, 6N)."""
        n = len(precision)
        held_out = (
            np.maximum(np.diag(precision), LEVERAGE_GUARD) if self.leave_one_out else np.ones(n)
        )
        smoother = (precision / held_out[:, None]).astype(np.float32)
        n_blocks = self.blocks[-1] + 1
        size = max(256, CHUNK_BYTES // (24 * n))
        chunks = [slice(k, k + size) for k in range(0, len(self.points), size)]

        def partial(chunk: slice) -> tuple[int, np.ndarray, np.ndarray]:
            jacobian = self.jacobian(samples, smoother, chunk)
            w = weights[chunk].astype(np.float32)
            blocks = self.blocks[chunk]
            starts = np.flatnonzero(np.diff(blocks, prepend=-1))
            scores = jacobian * (residual[:, chunk] * w)[:, None]
            sums = np.add.reduceat(scores, starts, axis=2).reshape(6 * n, -1).T
            jacobian *= np.sqrt(w)
            flat = jacobian.reshape(6 * n, -1)
            return blocks[0], sums, flat @ flat.T

        gradients, products = np.zeros((n_blocks, 6 * n)), np.zeros((6 * n, 6 * n))
        for first, sums, product in parallel_iterate(partial, chunks, n_threads=self.n_threads):
            gradients[first : first + len(sums)] += sums
            products += product
        blocks = products.reshape(n, 6, n, 6) * precision[:, None, :, None]
        return gradients, blocks.reshape(6 * n, 6 * n)

    def jacobian(self, samples: Samples, smoother: np.ndarray, chunk: slice) -> np.ndarray:
        """``J`` of the smoothed volumes at some points, (N, 6, V)."""
        slopes = samples.slopes[:, :, chunk]
        x, y, z = (self.points[chunk] - self.center).T.astype(np.float32)
        jacobian = np.empty((slopes.shape[1], 6, slopes.shape[2]), np.float32)
        for axis in range(3):
            np.subtract(slopes[axis], smoother @ slopes[axis], out=jacobian[:, axis])
        gone = samples.missing[:, chunk]
        if gone.any():
            jacobian[:, :3].transpose(0, 2, 1)[gone] = 0.0
        gx, gy, gz = jacobian[:, 0], jacobian[:, 1], jacobian[:, 2]
        jacobian[:, 3] = y * gz - z * gy
        jacobian[:, 4] = z * gx - x * gz
        jacobian[:, 5] = x * gy - y * gx
        return jacobian


def filled(values: np.ndarray, gone: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Replace what is `gone` of the values (N, V) by what the others predict."""
    leverage = np.maximum(np.diag(precision), LEVERAGE_GUARD)[:, None]
    values = np.where(gone, 0.0, values).astype(precision.dtype)
    for _ in range(FILL_ITERATIONS):
        values = np.where(gone, values - (precision @ values) / leverage, values)
    return values


@dataclass(frozen=True, eq=False)
class LostSlices:
    """Slices without signal.

    Parameters
    ----------
    flagged : (N, Z) bool array
    affine : (4, 4) array
        Of the images whose third axis counts the slices.
    """

    flagged: np.ndarray
    affine: np.ndarray

    def at(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Whether a volume has lost its signal at world points (V, 3), or within a slice of it."""
        row = np.linalg.inv(self.affine)[2]
        return is_lost(self.flagged[volume], points @ row[:3] + row[3])

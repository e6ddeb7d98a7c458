# SPDX-License-Identifier: Apache-2.0
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
- ``w`` holds one Student-t weight (one degree of freedom) a point, of ``q = yᵀPy / N``.
- Where a volume has no value (outside its image, in a slice that lost its signal), the one that
  the others predict takes its place and its ``J`` is zero: the volume does not count there.
- A motion common to all volumes changes nothing: the mean step is removed.

Eddy currents (:mod:`eddymotion.mapping.eddy_currents`) are further unknowns of each volume, fixed
to the scanner while the head moves. With ``e ← e − ε`` the volume changes by ``−J_e ε``, ::

    J_e = −(∂y/∂pe) P(u(T x))

The stretch, which multiplies the signal, is held during a step, or the cost would fall by making
the volumes darker; and the slope of the fields (a hundredth) is left out of ``J``. A field common
to all volumes only warps the frame of the head. Like the common motion it is not determined, and
the :class:`~eddymotion.estimation.fields.prior.FieldPrior` fixes it.

Poses and fields are blocks of unknowns (:mod:`eddymotion.estimation.equations.unknowns`), whose
columns of ``J`` lie side by side. The code below knows nothing else of them, except that each
volume has a pose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.few_terms import Filter
from eddymotion.estimation.equations.normal_equations import (
    GramMatrix,
    NormalEquations,
    give_own_blocks,
)
from eddymotion.estimation.equations.samples import (
    MAX_MISSING,
    Lost,
    Residuals,
    Samples,
    filled,
    smoothed,
)
from eddymotion.estimation.equations.unknowns import Block, Poses, Unknowns
from eddymotion.images.image import Continuous
from eddymotion.images.pyramid import BLOCK_MM, MIN_POINTS, blocks_of
from eddymotion.machine.parallel import parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.models import LinearModel
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.registration.solver import Descent

COST_SLACK = 1e-3
"""Rise of the cost (−log-likelihood a value) that a step may bring, since the weights change."""

POINTS_FOR_MODEL = 12_000
"""The model is fitted at this many points at most."""

VALUES_FOR_HESSIAN, LEAST_FOR_HESSIAN = 250_000, 2_000
"""The normal matrix of poses is summed over about the first number of values (of a volume at a
point), but over no fewer points than the second. Each point costs the square of the number of
unknowns; with fewer points for more volumes, or for volumes with fields, the time grows in
proportion to the number of volumes. An error of this matrix does not change where the steps
end."""

POINTS_FOR_OWN = 20_000
"""The blocks of the normal matrix between the unknowns of one volume are summed over about this
many points. Few steep places may determine a field: with only :data:`LEAST_FOR_HESSIAN` points,
steps of a volume were more than twice as long as they should be, and it went back and forth."""

COMPARED_AT_A_TIME = 4096
"""Points at which a thread compares volumes with the model at a time."""

POINTS_FOR_WAY = 50
"""Number of points, about, at which is measured how far volumes have moved."""

CHUNK_BYTES = 2**23
"""Size of the Jacobians that a thread holds at a time."""


@dataclass(frozen=True, eq=False)
class CoupledProblem:
    """One group of volumes at one level.

    Parameters
    ----------
    splines : sequence of N Continuous
        The volumes, band-passed.
    gradients : Gradients
        Of the N volumes, in the scanner's frame.
    model : LinearModel
        Fitted.
    points : (V, 3) array
        In the head's frame, RAS+ mm.
    center : (3,) array
        Centre of the brain, RAS+ mm.
    lost : Lost, optional
        Slices without signal.
    blocks : sequence of Block
        What is solved for; the poses alone when not given.
    part_mm : float
        Edge of the parts of the brain of :meth:`gradients_by_part`.
    leave_one_out : bool
        Whether ``J`` comes from leave-one-out predictions instead of the posterior mean.
    steady_mm : float
        The normal matrix is kept while no volume moves farther than this (root mean square).
    n_threads : int
        The result does not depend on it.
    """

    splines: Sequence[Continuous]
    gradients: Gradients
    model: LinearModel
    points: np.ndarray
    center: np.ndarray
    lost: Lost | None = None
    blocks: Sequence[Block] = ()
    part_mm: float = BLOCK_MM
    leave_one_out: bool = False
    steady_mm: float = 0.0
    n_threads: int = 1
    parts: np.ndarray = field(init=False)

    slack = COST_SLACK

    def __post_init__(self) -> None:
        numbers = blocks_of(self.points - self.center, self.part_mm)
        order = np.argsort(numbers, kind="stable")  # neighbours in space are neighbours in memory
        object.__setattr__(self, "points", self.points[order])
        object.__setattr__(self, "parts", numbers[order])

    @cached_property
    def unknowns(self) -> Unknowns:
        """What is solved for."""
        return Unknowns(self.blocks or [Poses(self.center)])

    def with_model_fitted(self, motion: Motion) -> CoupledProblem:
        """Fit the model to what the volumes show at the points, unless it is fitted already."""
        if self.model.fitted:
            return self
        points = self.points[:: self._every_for_model]

        def read(volume: int) -> np.ndarray:
            values = motion.mapping(volume).sample(self.splines[volume], points)
            values[self._is_lost(motion, volume, points)] = np.nan
            return values

        values = np.stack(parallel_map(read, range(len(motion)), n_threads=self.n_threads))
        return self._with_model_fitted(motion, values, ~np.isfinite(values))

    def with_model_fitted_to(self, samples: Samples) -> CoupledProblem:
        """Fit the model as :meth:`with_model_fitted`, to what was read at all points."""
        if self.model.fitted:
            return self
        some = slice(None, None, self._every_for_model)
        return self._with_model_fitted(
            samples.motion, samples.values[:, some], samples.missing[:, some]
        )

    @property
    def _every_for_model(self) -> int:
        """Stride of the points to which the model is fitted."""
        return -(-len(self.points) // POINTS_FOR_MODEL)

    def _with_model_fitted(
        self, motion: Motion, values: np.ndarray, gone: np.ndarray
    ) -> CoupledProblem:
        """Fit the model to values (N, …), some of which are `gone`."""
        usable = gone.mean(axis=0) <= MAX_MISSING
        if not usable.any():
            return self
        rotated = self.gradients.rotated(motion.rotations)
        whole, gone = values[:, usable].astype(float), gone[:, usable]
        holes = np.flatnonzero(gone.any(axis=0))  # many, where slices are lost
        precision = Filter.of(self.model.precision(rotated))
        whole[:, holes] = filled(whole[:, holes], gone[:, holes], precision)
        scatter = whole @ whole.T / whole.shape[1]
        return replace(self, model=self.model.fit(scatter, rotated))

    def solve(
        self,
        motion: Motion,
        max_iterations: int,
        tolerance: float,
        share: float = 0.0,
        progress: Callable[..., Iterable[int]] | None = None,
        kept: KeptMatrix | None = None,
    ) -> tuple[Motion, Descent[Motion], Evaluated | None]:
        """Align all volumes with their predictions; a step that raises the cost is halved.

        Parameters
        ----------
        motion : Motion
            Where to start.
        max_iterations : int
        tolerance : float
            Ends once the root-mean-square displacement still to go is smaller, mm at the points.
        share : float
            The same, relative to the displacement that noise causes, if that is more.
        progress : callable, optional
            A :class:`~eddymotion.machine.parallel.Progress` with its description.
        kept : KeptMatrix, optional
            Of this problem, begun at the start.

        Returns
        -------
        motion : Motion
        descent : Descent
            Its steps.
        seen : Evaluated, optional
            The last evaluation, if it was less than the tolerance away from the solution.
        """
        kept = kept or KeptMatrix(self)
        descent = Descent(
            kept, motion, tolerance, creeps=True, mixes=share > 0 and self._has_fields
        )
        descent.step()
        if share and kept.seen is not None:
            descent.tolerance = max(tolerance, share * self.chance(motion, kept.seen))
        if not descent.ended:
            descent.run(max_iterations - 1, progress)
        if descent.halved or not descent.ended:
            kept.seen = None
        descent.go_to_last(self.cost)
        return descent.place, descent, kept.seen

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, p)."""
        return self.unknowns.moved(motion, step)

    def chance(self, motion: Motion, seen: Evaluated) -> float:
        """Root-mean-square displacement of the points that noise may cause, mm."""
        return self.length(motion, seen.system.chance())

    def length(self, motion: Motion, step: np.ndarray) -> float:
        """Root-mean-square displacement of the points by a step (N, p), mm."""
        return float(np.sqrt(((step * self.in_mm) ** 2).sum(axis=1).mean()))

    @cached_property
    def in_mm(self) -> np.ndarray:
        """Root-mean-square displacement (mm) of the points for each unknown of a volume, (p,)."""
        return self.unknowns.lengths(self.points)

    def look(self, motion: Motion, samples: Samples | None = None) -> Residuals | None:
        """Compare the volumes with the model; None if too few points lie inside them.

        The `samples` under the motion are read if they are not given.
        """
        precision = self.model.precision(self.gradients.rotated(motion.rotations))
        found = self.residuals(samples or self.sample(motion), precision)
        return found if found.usable.sum() >= MIN_POINTS else None

    def cost(self, motion: Motion) -> float:
        """Return the cost; infinite where too few points lie inside the volumes."""
        found = self.look(motion)
        return np.inf if found is None else found.cost

    def evaluate(self, motion: Motion) -> NormalEquations | None:
        """Set up the normal equations; None where too few points lie inside the volumes."""
        found = self.look(motion)
        return None if found is None else self.equations(found, found.weights)

    def equations(
        self, found: Residuals, weights: np.ndarray, like: NormalEquations | None = None
    ) -> NormalEquations:
        """Set up the normal equations of weighted points (V,), or take the matrix of `like`."""
        gradients = self.gradients_by_part(found, weights)
        hessian = self.normal_matrix(found, weights) if like is None else like.hessian
        n_points, priors = int(found.usable.sum()), self.unknowns.priors(found.samples.motion)
        return NormalEquations(
            found.cost, n_points, hessian, gradients, self.unknowns, priors, like
        )

    def farthest(self, motion: Motion, other: Motion) -> float:
        """Largest root-mean-square displacement of points of a volume between two motions, mm."""
        some = self.points[:: -(-len(self.points) // POINTS_FOR_WAY)]
        displacements = [
            motion.recorded(volume, some) - other.recorded(volume, some)
            for volume in range(len(motion))
        ]
        return float(np.sqrt(np.square(displacements).sum(axis=2).mean(axis=1)).max())

    def at(self, inside: np.ndarray | slice) -> CoupledProblem:
        """Take some of the points, (V,) bool or a slice."""
        return replace(self, points=self.points[inside])

    def sample(self, motion: Motion) -> Samples:
        """Read all volumes at the points."""
        n, n_points = len(self.splines), len(self.points)
        values = np.empty((n, n_points), np.float32)
        slopes = np.empty((3, n, n_points), np.float32)
        missing = np.empty((n, n_points), bool)

        def read(volume: int) -> None:
            mapping = motion.mapping(volume)
            value, slope = mapping.sample_with_gradient(self.splines[volume], self.points)
            gone = ~np.isfinite(value) | self._is_lost(motion, volume, self.points)
            holes = np.flatnonzero(gone)  # few
            value[holes] = 0.0
            slope[holes] = 0.0
            missing[volume], values[volume], slopes[:, volume] = gone, value, slope.T

        parallel_map(read, range(n), n_threads=self.n_threads)
        return Samples(motion, values, slopes, missing)

    def _is_lost(self, motion: Motion, volume: int, points: np.ndarray) -> np.ndarray:
        if self.lost is None:
            return np.zeros(len(points), bool)
        return self.lost.at(volume, motion.recorded(volume, points))

    def residuals(self, samples: Samples, precision: np.ndarray) -> Residuals:
        """Compare samples with the model; missing values are filled with predictions, in place."""
        P, values = Filter.of(precision), samples.values
        residual, misfit = np.empty_like(values), np.empty(values.shape[1], np.float32)

        def compare(some: slice) -> None:
            own, gone = values[:, some], samples.missing[:, some]
            residual[:, some] = P @ own
            holes = np.flatnonzero(gone.any(axis=0))
            if len(holes):
                gone = gone[:, holes]
                own[:, holes] = block = filled(own[:, holes], gone, P)
                of_block = P @ block
                of_block[gone] = 0.0
                residual[:, some][:, holes] = of_block
            misfit[some] = np.einsum("nv,nv->v", own, residual[:, some]) / len(values)

        stop = values.shape[1]
        pieces = [slice(k, min(k + COMPARED_AT_A_TIME, stop))
                  for k in range(0, stop, COMPARED_AT_A_TIME)]  # fmt: skip
        parallel_map(compare, pieces, n_threads=self.n_threads)
        return Residuals(samples, precision, residual, np.maximum(misfit, 0.0))

    def gradients_by_part(self, found: Residuals, weights: np.ndarray) -> np.ndarray:
        """Return ``G`` by parts of the brain, (B, Np)."""
        n, n_unknowns = len(found.precision), len(self.unknowns)
        gradients = np.zeros((self.parts[-1] + 1, n, n_unknowns))

        def sums(chunk: slice) -> np.ndarray:
            factors = found.values[:, chunk] * weights[chunk].astype(np.float32)
            parts = self.parts[chunk] - self.parts[chunk.start]
            slopes = self.slopes(found, chunk)
            return self.unknowns.pulls(
                found.samples.motion, self.points[chunk], slopes, factors, parts
            )

        chunks = self.chunks(n)
        summed = parallel_iterate(sums, chunks, n_threads=self.n_threads)
        for chunk, one in zip(chunks, summed, strict=True):
            first = self.parts[chunk.start]
            gradients[first : first + len(one)] += one
        return gradients.reshape(len(gradients), -1)

    def normal_matrix(self, found: Residuals, weights: np.ndarray) -> np.ndarray:
        """Return ``H`` (Np, Np)."""
        gram = GramMatrix(len(found.precision) * len(self.unknowns), self.n_threads)
        points = self.points_for_matrix(found)
        for part in self.columns_by_chunk(found, weights, points):
            gram.add(part)
        products = gram.whole()
        if self._has_fields and len(points) < len(self.points):
            give_own_blocks(products, self.own_products(found, weights))
        return self.between_volumes(found.precision, products)

    def own_products(self, found: Residuals, weights: np.ndarray) -> np.ndarray:
        """``Σ w J Jᵀ`` of each volume, (N, p, p), over more points than that between volumes."""
        n, every = len(found.precision), -(-len(self.points) // POINTS_FOR_OWN)
        total = np.zeros((n, len(self.unknowns), len(self.unknowns)))
        for part in self.columns_by_chunk(found, weights, np.arange(0, len(self.points), every)):
            columns = part.reshape(n, len(self.unknowns), -1)
            total += columns @ columns.swapaxes(1, 2)
        return total

    def points_for_matrix(self, found: Residuals) -> np.ndarray:
        """Choose the points over which ``H`` is summed, (K,) int."""
        return np.arange(0, len(self.points), self._every_for_matrix(len(found.precision)))

    def columns(self, found: Residuals, weights: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return ``√w J`` at points (K,) int: (Np, K) float32."""
        columns = np.empty((len(found.precision) * len(self.unknowns), len(points)), np.float32)
        first = 0
        for part in self.columns_by_chunk(found, weights, points):
            columns[:, first : first + part.shape[1]] = part
            first += part.shape[1]
        return columns

    def columns_by_chunk(
        self, found: Residuals, weights: np.ndarray, points: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yield ``√w J`` at points (K,) int, some of them at a time: (Np, …)."""
        n, n_unknowns = len(found.precision), len(self.unknowns)
        roots = np.sqrt(weights[points] * (len(self.points) / len(points))).astype(np.float32)

        def weighted(chunk: slice) -> np.ndarray:
            jacobian = self.jacobian(found, points[chunk])
            jacobian *= roots[chunk]
            return jacobian.reshape(n * n_unknowns, -1)

        return parallel_iterate(weighted, self.chunks(n, len(points)), n_threads=self.n_threads)

    def between_volumes(self, precision: np.ndarray, products: np.ndarray) -> np.ndarray:
        """Turn ``Σ w J Jᵀ`` (Np, Np) into ``H`` by ``P`` (N, N), in place."""
        n, n_unknowns = len(precision), len(self.unknowns)
        blocks = products.reshape(n, n_unknowns, n, n_unknowns)
        blocks *= precision[:, None, :, None]
        return products

    @property
    def _has_fields(self) -> bool:
        """Whether more than poses is solved for: few steep places may determine that."""
        return len(self.unknowns.blocks) > 1

    def _every_for_matrix(self, n_volumes: int) -> int:
        """Stride of the points over which the normal matrix is summed."""
        cost = (len(self.unknowns) / Poses.size) ** 2
        enough = max(VALUES_FOR_HESSIAN / (n_volumes * cost), LEAST_FOR_HESSIAN)
        return max(1, int(len(self.points) / enough))

    def chunks(self, n_volumes: int, n_points: int | None = None) -> list[slice]:
        """Split the points, or a number of them, into pieces whose Jacobian a thread can hold."""
        size = max(256, CHUNK_BYTES // (4 * n_volumes * len(self.unknowns)))
        stop = len(self.points) if n_points is None else n_points
        return [slice(k, min(k + size, stop)) for k in range(0, stop, size)]

    def slopes(self, found: Residuals, points: slice | np.ndarray) -> np.ndarray:
        """Return the slopes of the smoothed volumes at some points, (N, 3, V)."""
        samples, smoother = found.samples, found.filter
        leverage = np.maximum(smoother.leverage, LEVERAGE_GUARD) if self.leave_one_out else None
        slopes, missing = samples.slopes[:, :, points], samples.missing[:, points]
        return smoothed(slopes, missing, smoother, leverage)

    def jacobian(self, found: Residuals, points: slice | np.ndarray) -> np.ndarray:
        """``J`` of the smoothed volumes at some points, (N, p, V)."""
        slopes = self.slopes(found, points)
        return self.unknowns.jacobian(found.samples.motion, self.points[points], slopes)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A problem evaluated under a motion.

    Parameters
    ----------
    found : Residuals
    system : NormalEquations
        Its matrix may be that of a motion close by.
    """

    found: Residuals
    system: NormalEquations


@dataclass(eq=False)
class KeptMatrix:
    """The objective of a descent that keeps its normal matrix while the volumes hardly move.

    That does not change where the steps end: the gradients alone decide it.

    Parameters
    ----------
    problem : CoupledProblem
    first : Samples, optional
        Of the first motion; released once they are used.

    Attributes
    ----------
    seen : Evaluated, optional
        The last evaluation.
    """

    problem: CoupledProblem
    first: Samples | None = None
    seen: Evaluated | None = field(default=None, init=False)
    _last: tuple[Motion, NormalEquations] | None = field(default=None, init=False)

    @classmethod
    def begun(cls, problem: CoupledProblem, motion: Motion) -> KeptMatrix:
        """Read the volumes at a start, and fit the model of the problem to what they show."""
        first = problem.sample(motion)
        return cls(problem.with_model_fitted_to(first), first)

    @property
    def slack(self) -> float:
        """Rise of the cost that still counts as progress."""
        return self.problem.slack

    def evaluate(self, motion: Motion) -> NormalEquations | None:
        """Evaluate at a motion; None where too few points lie inside the volumes."""
        self.seen = None  # release its memory before the next is made
        first, self.first = self.first, None
        found = self.problem.look(motion, first)
        if found is None:
            return None
        if self._last and self.problem.farthest(motion, self._last[0]) > self.problem.steady_mm:
            self._last = None
        system = self.problem.equations(found, found.weights, self._last and self._last[1])
        self._last = self._last or (motion, system)
        self.seen = Evaluated(found, system)
        return system

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, p)."""
        return self.problem.moved(motion, step)

    def length(self, motion: Motion, step: np.ndarray) -> float:
        """Root-mean-square displacement of the points by a step (N, p), mm."""
        return self.problem.length(motion, step)

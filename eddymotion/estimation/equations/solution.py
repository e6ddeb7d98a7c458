# SPDX-License-Identifier: Apache-2.0
"""What the solution of a joint problem tells of its own errors.

All of it comes from one reading of the volumes at the solution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eddymotion.data.acquisition import Slicing
from eddymotion.estimation.equations.coupled import CoupledProblem, Evaluated
from eddymotion.estimation.equations.normal_equations import DAMPING, GramMatrix, NormalEquations
from eddymotion.estimation.equations.samples import Residuals, Samples
from eddymotion.estimation.equations.twist_kernels import sum_twists
from eddymotion.estimation.equations.unknowns import POSES
from eddymotion.estimation.outliers import slice_row
from eddymotion.images.pyramid import MIN_POINTS
from eddymotion.machine.parallel import parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.robust import sandwich

POINTS_FOR_SHARE = 10_000
"""About so many points tell how short steps are."""

LEAST_RECOVERED = 0.1
"""Steps are not taken as shorter than by this factor."""

PERIODS = 8
"""Parts of the time of a volume that are compared to find motion within it. On simulated nods of
up to 1.5 mm the errors were 0.3 to 1.5 times what their scatter says; four parts told 1.4 times
more."""

SMALL_BYTES = 2**26
"""Of a normal matrix: halves of a brain are solved side by side where copies are small."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The solution of a problem.

    Parameters
    ----------
    problem : CoupledProblem
    motion : Motion
        Of its N volumes.
    """

    problem: CoupledProblem
    motion: Motion

    @classmethod
    def of(cls, problem: CoupledProblem, motion: Motion, seen: Evaluated | None) -> Solution:
        """Take what the steps to a motion saw last, less than their tolerance away from it.

        Nothing has to be read again then.
        """
        if seen is None:
            return cls(problem, motion)
        there = cls(problem, seen.found.samples.motion)
        there.__dict__.update(found=seen.found, system=seen.system)  # what is cached below
        return there

    @cached_property
    def found(self) -> Residuals | None:
        """How the volumes depart from the model there; None where too few points are inside."""
        return self.problem.look(self.motion)

    @property
    def samples(self) -> Samples:
        """What the volumes show there."""
        return self.problem.sample(self.motion) if self.found is None else self.found.samples

    @cached_property
    def system(self) -> NormalEquations | None:
        """The normal equations there."""
        found = self.found
        return None if found is None else self.problem.equations(found, found.weights)

    def _release(self) -> None:
        """Let go of what the volumes show; it is read again if it is asked for."""
        self.__dict__.pop("found", None)

    def covariances(self) -> np.ndarray:
        """Covariance of the error of each pose, (N, 6, 6).

        Noise is correlated from point to point and misfit from voxel to voxel, but little between
        parts of the brain that are ``part_mm`` wide. NaN where too few points are left.
        """
        if self.system is None:
            return np.full((len(self.motion), 6, 6), np.nan)
        return self.system.covariances(POSES)

    @cached_property
    def recovered(self) -> float:
        """Share of a small displacement that one step takes back.

        Noise in ``J`` makes ``H`` too large, the more the less signal there is: steps become
        shorter, and what :meth:`covariances` and :meth:`scatter_of_halves` tell from one step
        smaller, by this share. The displacement is one that noise may well have caused: what the
        blocks add, with random signs. 1 where too few points are left.
        """
        system, unknowns = self.system, self.problem.unknowns
        if system is None:
            return 1.0
        away = system.chance()[:, unknowns.columns[POSES]]
        poses = unknowns.only(POSES)
        some = np.zeros(len(self.problem.points), bool)
        some[:: max(1, len(some) // POINTS_FOR_SHARE)] = True
        part = self.problem.at(some)
        here, there = part.look(self.motion), part.look(poses.moved(self.motion, away))
        if here is None or there is None:
            return 1.0
        before = part.equations(here, here.weights)
        after = part.equations(there, there.weights, before)
        in_mm = poses.lengths(part.points)
        back, away = (before.step(POSES) - after.step(POSES)) * in_mm, away * in_mm
        share = (back * away).sum() / max((away**2).sum(), np.finfo(float).tiny)
        return float(np.clip(share, LEAST_RECOVERED, 1.0))

    def scatter_of_halves(self) -> np.ndarray:
        """Mean square by which halves of the brain move the poses, axis by axis: (6,).

        Left and right, front and back, top and bottom each take a step of their own, over all
        volumes. Were there noise alone, this would be the mean of :meth:`covariances`; what is
        alike over wide regions shows here only. NaN where a half is too small. What the volumes
        show is let go of: it has to be read again afterwards.
        """
        system, problem = self.system, self.problem
        if self.found is None or system is None:
            return np.full(6, np.nan)
        above = problem.points > problem.center  # parts lie on one side
        if self._least_seen(above) < MIN_POINTS:
            return np.full(6, np.nan)
        whole, precision = system.step(POSES), self.found.precision
        firsts = np.searchsorted(problem.parts, np.arange(len(system.gradients)))
        some = problem.points_for_matrix(self.found)
        columns = problem.columns(self.found, self.found.weights, some)
        self._release()  # several matrices take its place
        together, squares = self._products(columns), []

        def square(half: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            inside, products = half
            half_system = replace(
                system,
                hessian=problem.between_volumes(precision, products),
                gradients=system.gradients[inside[firsts]],
                like=None,
            )
            return (half_system.step(POSES) - whole) ** 2

        at_once = problem.n_threads if together.nbytes <= SMALL_BYTES else 1
        for axis in above.T:
            upper = self._products(columns[:, axis[some]])
            halves = (axis, upper), (~axis, together - upper)
            squares += parallel_map(square, halves, n_threads=at_once)
        return np.mean(squares, axis=(0, 1))

    def _least_seen(self, above: np.ndarray) -> int:
        """Return how many points tell of the half that fewest tell of; `above` (V, 3) bool."""
        assert self.found is not None
        seen = self.found.weights > 0
        return min(int(seen[side].sum()) for axis in above.T for side in (axis, ~axis))

    def _products(self, columns: np.ndarray) -> np.ndarray:
        """Return ``A Aᵀ`` of columns (K, …)."""
        gram = GramMatrix(len(columns), self.problem.n_threads)
        gram.add(columns)
        return gram.whole()

    def scatter_of_periods(
        self, slicing: Slicing, affine: np.ndarray, n_slices: int
    ) -> np.ndarray:
        """Covariance of each pose by how much the parts of its time pull apart, (N, 6, 6).

        As :meth:`covariances`, with what the slices of each of :data:`PERIODS` parts of the time
        add in place of each part of the brain, and the other volumes held. Were there noise
        alone, both would be alike; a head that moved within a volume shows here. NaN where too
        few points are left.

        Parameters
        ----------
        slicing : Slicing
        affine : (4, 4) array
            Of the images.
        n_slices : int
        """
        found, system, n = self.found, self.system, len(self.motion)
        if found is None or system is None:
            return np.full((n, 6, 6), np.nan)
        period = slicing.periods(n_slices, PERIODS)
        pulls = self._pulls_of(period, slice_row(affine, slicing.axis))
        poses = system.unknowns.columns[POSES]
        blocks = system.hessian.reshape(n, len(system.unknowns), n, -1)
        hessian = np.einsum("ikil->ikl", blocks)[:, poses, poses].copy()
        diagonal = np.einsum("nkk->nk", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        (pose,) = system.unknowns.only(POSES).blocks
        along = np.eye(6) if pose.directions is None else pose.directions
        pulls, hessian = along.T @ pulls, along.T @ hessian @ along
        steps = along @ np.linalg.solve(hessian, pulls - pulls.mean(axis=2, keepdims=True))
        return sandwich(steps, n_fitted=1)

    def _pulls_of(self, period: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Sum what points of each period pull a pose by, (N, 6, PERIODS).

        Parameters
        ----------
        period : (Z,) int array
            Of each slice.
        height : (4,) array
            World point → its slice.
        """
        problem, found, n = self.problem, self.found, len(self.motion)
        assert found is not None
        weights = found.weights.astype(np.float32)
        pulls = np.zeros((PERIODS, n, 6))
        period = period.astype(np.int8)

        def periods_of(volume: int) -> np.ndarray:
            slices = self.motion.recorded(volume, problem.points) @ height[:3] + height[3]
            return period[np.clip(np.rint(slices).astype(int), 0, len(period) - 1)]

        parts = np.stack(parallel_map(periods_of, range(n), n_threads=problem.n_threads))

        def sums(chunk: slice) -> np.ndarray:
            points = problem.points[chunk] - problem.center
            factors = found.values[:, chunk] * weights[chunk]
            return sum_twists(points, problem.slopes(found, chunk), factors, parts[:, chunk])

        for one in parallel_iterate(sums, problem.chunks(n), n_threads=problem.n_threads):
            pulls[: len(one)] += one
        return pulls.transpose(1, 2, 0)

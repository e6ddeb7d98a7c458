# SPDX-License-Identifier: Apache-2.0
"""What the solution of a joint problem tells of its own errors.

All of it comes from one reading of the volumes at the solution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import CoupledProblem, Evaluated
from eddymotion.estimation.equations.normal_equations import DAMPING, GramMatrix, NormalEquations
from eddymotion.estimation.equations.samples import Residuals, Samples
from eddymotion.estimation.equations.twist_kernels import sum_twists
from eddymotion.estimation.equations.unknowns import POSES
from eddymotion.estimation.outliers import slice_row
from eddymotion.images.pyramid import MIN_POINTS, head_scale
from eddymotion.machine.parallel import parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import twist_millimetres
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

    def scatter_of_periods(self, dwi: DWI) -> np.ndarray:
        """Covariance of each pose by how much the parts of its time pull apart, (N, 6, 6).

        As :meth:`covariances`, with what the slices of each of :data:`PERIODS` parts of the time
        add in place of each part of the brain, and the other volumes held. Were there noise
        alone, both would be alike; a head that moved within a volume shows here. NaN where too
        few points are left.

        Parameters
        ----------
        dwi : DWI
            The series that these volumes are of: when its slices were excited, and where they lie.
        """
        found, system, n = self.found, self.system, len(self.motion)
        if found is None or system is None:
            return np.full((n, 6, 6), np.nan)
        slicing = dwi.acquisition.slicing
        period = slicing.periods(dwi.n_slices, PERIODS)
        pulls = self._pulls_of(period, slice_row(dwi.affine, slicing.axis), found.weights)
        poses = system.unknowns.columns[POSES]
        blocks = system.hessian.reshape(n, len(system.unknowns), n, -1)
        hessian = np.einsum("ikil->ikl", blocks)[:, poses, poses].copy()
        diagonal = np.einsum("nkk->nk", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        along = self._directions_of_poses()
        pulls, hessian = along.T @ pulls, along.T @ hessian @ along
        steps = along @ np.linalg.solve(hessian, pulls - pulls.mean(axis=2, keepdims=True))
        return sandwich(steps, n_fitted=1)

    def contradictions(self, dwi: DWI) -> np.ndarray:
        """Covariance of each pose by what its slices say against it, (N, 6, 6).

        A head that moves and comes back leaves a few slices that no pose of the volume explains.
        Where the model is sure, as of b=0 volumes, they hardly count, so that the pose is that of
        the others and all agree with it. Here all count alike: how far they would take the pose
        (its square), and how far the parts of its time pull apart. What most volumes of the group
        do alike is the model's. Where the times of slices are not known, those count by which a
        volume is pulled farthest apart, of :func:`~eddymotion.data.acquisition.usual_orders`.
        NaN where too few points are left.

        Parameters
        ----------
        dwi : DWI
            As in :meth:`scatter_of_periods`.
        """
        found, n = self.found, len(self.motion)
        if found is None or self.system is None:
            return np.full((n, 6, 6), np.nan)
        slicing, n_slices = dwi.acquisition.slicing, dwi.n_slices
        alike, height = found.usable.astype(float), slice_row(dwi.affine, slicing.axis)
        steps = self._steps_of_poses(self._pulls_of(np.arange(n_slices), height, alike), alike)
        periods = [order.periods(n_slices, PERIODS) for order in slicing.possible(n_slices)]
        asked = np.stack([_asked_for(steps, period) for period in periods])
        in_mm = twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes))
        farthest = np.einsum("onkk,k->on", asked, in_mm**2).argmax(axis=0)
        return asked[farthest, np.arange(n)]

    def _directions_of_poses(self) -> np.ndarray:
        """Directions in which poses are free to move, (6, k)."""
        (pose,) = self.problem.unknowns.only(POSES).blocks
        return np.eye(6) if pose.directions is None else pose.directions

    def _steps_of_poses(self, pulls: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Solve for the steps that pulls (N, 6, B) of points with weights (V,) ask for."""
        assert self.found is not None
        n, along = len(self.motion), self._directions_of_poses()
        poses = replace(self.problem, blocks=self.problem.unknowns.only(POSES).blocks)
        hessian = poses.normal_matrix(self.found, weights).reshape(n, 6, n, 6)
        hessian = np.einsum("ak,iajb,bl->ikjl", along, hessian, along, optimize=True)
        hessian = hessian.reshape(n * along.shape[1], -1)
        diagonal = np.einsum("kk->k", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        right = (along.T @ pulls).reshape(len(hessian), -1)
        steps = scipy.linalg.solve(hessian, right, assume_a="pos")
        return along @ steps.reshape(n, -1, pulls.shape[2])

    def _pulls_of(self, period: np.ndarray, height: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sum what points of each period pull a pose by, (N, 6, B).

        Parameters
        ----------
        period : (Z,) int array
            Of each slice, below B.
        height : (4,) array
            World point → its slice.
        weights : (V,) array
            Of the points.
        """
        problem, found, n = self.problem, self.found, len(self.motion)
        assert found is not None
        weights = weights.astype(np.float32)
        pulls = np.zeros((int(period.max()) + 1, n, 6))
        period = period.astype(np.int16)

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


def _asked_for(steps: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Square of what all slices ask for and scatter of what those of each period do, (N, 6, 6).

    Parameters
    ----------
    steps : (N, 6, Z) array
        That each slice asks for.
    period : (Z,) int array
        Of each slice.
    """
    parts = np.stack([steps[..., period == one].sum(axis=2) for one in np.unique(period)], axis=2)
    parts -= np.median(parts, axis=0)
    whole = parts.sum(axis=2)
    apart = sandwich(parts - parts.mean(axis=2, keepdims=True), n_fitted=1)
    return apart + whole[:, :, None] * whole[:, None]

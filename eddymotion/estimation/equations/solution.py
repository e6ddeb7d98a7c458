# SPDX-License-Identifier: Apache-2.0
"""The solution of a joint problem, and its errors.

All errors come from a single reading of the volumes at the solution.
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
"""How much too short steps are is measured at about so many points."""

LEAST_RECOVERED = 0.1
"""Steps are assumed to cover at least this share of the way."""

PERIODS = 8
"""Parts of the time of a volume that are compared to find motion within it. On simulated nods of
up to 1.5 mm the errors were 0.3 to 1.5 times what the scatter of the parts says; with four parts
that was 1.4 times more."""

SMALL_BYTES = 2**26
"""Halves of a brain are solved side by side while a copy of the normal matrix is smaller."""


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
        """Reuse the last evaluation of the steps, less than their tolerance away from the motion.

        Nothing has to be read again then. Without it the solution is evaluated at `motion`.
        """
        if seen is None:
            return cls(problem, motion)
        there = cls(problem, seen.found.samples.motion)
        there.__dict__.update(found=seen.found, system=seen.system)  # what is cached below
        return there

    @cached_property
    def found(self) -> Residuals | None:
        """Residuals of the volumes there; None if too few points lie inside them."""
        return self.problem.look(self.motion)

    @property
    def samples(self) -> Samples:
        """Values of the volumes there."""
        return self.problem.sample(self.motion) if self.found is None else self.found.samples

    @cached_property
    def system(self) -> NormalEquations | None:
        """The normal equations there."""
        found = self.found
        return None if found is None else self.problem.equations(found, found.weights)

    def _release(self) -> None:
        """Release the values of the volumes, except at a few points.

        They are read again if they are asked for.
        """
        self.__dict__["_few"] = self._few  # what is cached below
        self.__dict__.pop("found", None)

    @cached_property
    def _few(self) -> tuple[CoupledProblem, Samples]:
        """The problem at a few of the points, and what the volumes show there."""
        some = slice(None, None, max(1, len(self.problem.points) // POINTS_FOR_SHARE))
        whole = self.samples
        values, slopes, missing = whole.values[:, some], whole.slopes[..., some], whole.missing
        few = Samples(self.motion, values.copy(), slopes.copy(), missing[:, some].copy())
        return self.problem.at(some), few

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

        Noise in ``J`` makes ``H`` too large, more so with less signal. By this share steps become
        too short, and the errors that :meth:`covariances` and :meth:`scatter_of_halves` infer from
        one step too small. The displacement is a plausible effect of noise: the sum of what the
        blocks contribute, with random signs. 1 if too few points are left.
        """
        system, unknowns = self.system, self.problem.unknowns
        if system is None:
            return 1.0
        away = system.chance()[:, unknowns.columns[POSES]]
        poses = unknowns.only(POSES)
        part, few = self._few
        here, there = part.look(self.motion, few), part.look(poses.moved(self.motion, away))
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
        volumes. With noise alone, this would be the mean of :meth:`covariances`; errors that are
        alike over wide regions show only here. NaN if a half is too small. The values of the
        volumes are released, and have to be read again afterwards.
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
        """Return the number of points in the smallest of the halves; `above` (V, 3) bool."""
        assert self.found is not None
        seen = self.found.weights > 0
        return min(int(seen[side].sum()) for axis in above.T for side in (axis, ~axis))

    def _products(self, columns: np.ndarray) -> np.ndarray:
        """Return ``A Aᵀ`` of columns (K, …)."""
        gram = GramMatrix(len(columns), self.problem.n_threads)
        gram.add(columns)
        return gram.whole()

    def within_volumes(self, dwi: DWI) -> tuple[np.ndarray, np.ndarray]:
        """Covariances of each pose by what slices say of it, with the other volumes held.

        Parameters
        ----------
        dwi : DWI
            The series that the volumes belong to, for the order and the place of its slices.

        Returns
        -------
        apart : (N, 6, 6) array
            By the scatter between parts of its time. As :meth:`covariances`, but summed over the
            slices of each of :data:`PERIODS` parts of the time instead of parts of the brain. With
            noise alone, both would be alike; motion within a volume makes this one larger.
        against : (N, 6, 6) array
            By the slices that contradict it. A head that moves and comes back leaves a few slices
            that no pose of the volume explains. If the model is certain, as for b=0 volumes, their
            weights are small: the pose is that of the other slices, and all of these agree with
            it. Here all slices have the same weight. The covariance is the square of the step that
            they ask for together, plus the scatter between the parts of the time; steps that most
            volumes of the group have in common are attributed to the model and taken out. If the
            times of slices are not known, each volume takes the order of
            :func:`~eddymotion.data.acquisition.usual_orders` with the largest covariance.

        NaN if too few points are left.
        """
        found, n = self.found, len(self.motion)
        if found is None or self.system is None:
            return np.full((n, 6, 6), np.nan), np.full((n, 6, 6), np.nan)
        slicing, alike = dwi.acquisition.slicing, found.usable.astype(float)
        period, single = slicing.periods(dwi.n_slices, PERIODS), np.arange(dwi.n_slices)
        height = slice_row(dwi.affine, slicing.axis)
        by_period, by_slice = self._pulls_of(height, (period, found.weights), (single, alike))
        return (
            self._scatter_of_periods(self.system, by_period),
            self._contradictions(dwi, self._steps_of_poses(by_slice, alike)),
        )

    def _scatter_of_periods(self, system: NormalEquations, pulls: np.ndarray) -> np.ndarray:
        """Covariance of each pose by the scatter of pulls (N, 6, B) of parts of its time."""
        n, poses = len(self.motion), system.unknowns.columns[POSES]
        blocks = system.hessian.reshape(n, len(system.unknowns), n, -1)
        hessian = np.einsum("ikil->ikl", blocks)[:, poses, poses].copy()
        diagonal = np.einsum("nkk->nk", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        along = self._directions_of_poses()
        pulls, hessian = along.T @ pulls, along.T @ hessian @ along
        steps = along @ np.linalg.solve(hessian, pulls - pulls.mean(axis=2, keepdims=True))
        return sandwich(steps, n_fitted=1)

    def _contradictions(self, dwi: DWI, steps: np.ndarray) -> np.ndarray:
        """Covariance of each pose by the steps (N, 6, Z) that its slices ask for, (N, 6, 6)."""
        slicing, n_slices = dwi.acquisition.slicing, dwi.n_slices
        periods = [order.periods(n_slices, PERIODS) for order in slicing.possible(n_slices)]
        asked = np.stack([_asked_for(steps, period) for period in periods])
        in_mm = twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes))
        farthest = np.einsum("onkk,k->on", asked, in_mm**2).argmax(axis=0)
        return asked[farthest, np.arange(len(steps))]

    def _directions_of_poses(self) -> np.ndarray:
        """Directions along which poses are solved for, (6, k)."""
        (pose,) = self.problem.unknowns.only(POSES).blocks
        return np.eye(6) if pose.directions is None else pose.directions

    def _steps_of_poses(self, pulls: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Solve for the steps by the pulls (N, 6, B) of points with weights (V,)."""
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

    def _pulls_of(
        self, height: np.ndarray, *ways: tuple[np.ndarray, np.ndarray]
    ) -> list[np.ndarray]:
        """Sum the pulls of the points of each period on each pose: (N, 6, B) for each way.

        Parameters
        ----------
        height : (4,) array
            World point → its slice.
        ways : pairs of (Z,) int array and (V,) array
            The period of each slice, below B, and the weights of the points.
        """
        problem, found, n = self.problem, self.found, len(self.motion)
        assert found is not None
        periods = np.array([period for period, _ in ways], np.int16)
        weights = [weights.astype(np.float32) for _, weights in ways]
        pulls = np.zeros((len(ways), int(periods.max()) + 1, n, 6))

        def periods_of(volume: int) -> np.ndarray:
            slices = self.motion.recorded(volume, problem.points) @ height[:3] + height[3]
            return periods[:, np.clip(np.rint(slices).astype(int), 0, periods.shape[1] - 1)]

        parts = np.stack(parallel_map(periods_of, range(n), n_threads=problem.n_threads), axis=1)

        def sums(chunk: slice) -> list[np.ndarray]:
            points, values = problem.points[chunk] - problem.center, found.values[:, chunk]
            slopes = problem.slopes(found, chunk)
            return [
                sum_twists(points, slopes, values * of[chunk], part[:, chunk])
                for of, part in zip(weights, parts, strict=True)
            ]

        for there in parallel_iterate(sums, problem.chunks(n), n_threads=problem.n_threads):
            for total, one in zip(pulls, there, strict=True):
                total[: len(one)] += one
        return [
            total[: period.max() + 1].transpose(1, 2, 0)
            for total, period in zip(pulls, periods, strict=True)
        ]


def _asked_for(steps: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Square of the step of all slices, plus the scatter of the steps by period: (N, 6, 6).

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

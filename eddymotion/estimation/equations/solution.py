# SPDX-License-Identifier: Apache-2.0
"""The solution of a joint problem, and its errors.

All errors come from a single reading of the volumes at the solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from eddymotion.data.gradients import shell_gap
from eddymotion.data.series import DWI
from eddymotion.estimation.equations.coupled import CoupledProblem, Evaluated
from eddymotion.estimation.equations.normal_equations import (
    DAMPING,
    GramMatrix,
    NormalEquations,
    turns_between,
)
from eddymotion.estimation.equations.samples import Residuals, Samples
from eddymotion.estimation.equations.twist_kernels import sum_twists
from eddymotion.estimation.equations.unknowns import POSES
from eddymotion.estimation.outliers import slice_row
from eddymotion.images.pyramid import MIN_POINTS, head_scale
from eddymotion.machine.parallel import parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import twist_millimetres
from eddymotion.robust import TINY, sandwich

POINTS_FOR_SHARE = 10_000
"""Number of points, about, at which is measured how much too short steps are."""

LEAST_RECOVERED = 0.1
"""Steps are assumed to cover at least this share of the way."""

PERIODS = 8
"""Parts of the time of a volume that are compared to find motion within it. On simulated nods of
up to 1.5 mm the errors were 0.3 to 1.5 times what the scatter of the parts says; with four parts
that was 1.4 times more."""

STIFFNESS = 0.2
"""Weight with which poses of successive parts of the time are tied to each other, relative to what
the images of a part have on average. Parts that show little of the head follow the others."""

LEAST_SHOWN = 0.5
"""A slice lost signal if its normal matrix is smaller than this share of what is usual there."""

ENOUGH_FOR_MODEL = 5
"""The median over so many volumes of similar b-values shows what the model gets wrong in them."""

HELD = 1e-3
"""Ridge, as a share of the trace, on the brightness of a slice, across which it is not known."""

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

    @property
    def way_left(self) -> np.ndarray:
        """Twists from the poses to where the images would have them, (N, 6).

        One step, divided by the share of the way that it covers. NaN if too few points are left.
        """
        if self.system is None:
            return np.full((len(self.motion), 6), np.nan)
        return -self.system.step(POSES) / self.recovered  # steps are taken off

    @property
    def recovered(self) -> float:
        """Share of a small displacement that one step takes back; see :meth:`recovered_by`."""
        return self.recovered_by(np.ones(len(self.motion), bool))

    def recovered_by(self, volumes: np.ndarray) -> float:
        """Share of a small displacement of some volumes, (N,) bool, that one step takes back.

        Noise in ``J`` makes ``H`` too large, more so with less signal. By this share steps become
        too short, and the errors that :meth:`covariances` and :meth:`squares_of_halves` infer from
        one step too small. The displacement is a plausible effect of noise: the sum of what the
        blocks contribute, with random signs. 1 if too few points are left.
        """
        away, back = self._there_and_back
        square = (away[volumes] ** 2).sum()
        if not square > 0:
            return 1.0
        share = (back[volumes] * away[volumes]).sum() / square
        return float(np.clip(share, LEAST_RECOVERED, 1.0))

    @cached_property
    def _there_and_back(self) -> tuple[np.ndarray, np.ndarray]:
        """That displacement (N, 6) and what a step takes back of it; zero without points."""
        system, unknowns = self.system, self.problem.unknowns
        nowhere = np.zeros((len(self.motion), 6))
        if system is None:
            return nowhere, nowhere
        away = system.chance()[:, unknowns.columns[POSES]]
        poses = unknowns.only(POSES)
        part, few = self._few
        here, there = part.look(self.motion, few), part.look(poses.moved(self.motion, away))
        if here is None or there is None:
            return nowhere, nowhere
        before, after = (part.equations(seen, seen.weights, system) for seen in (here, there))
        back = (before.step(POSES) - after.step(POSES)) * len(self.problem.points)
        in_mm = poses.lengths(part.points)
        return away * in_mm, back / len(part.points) * in_mm

    def squares_of_halves(self) -> np.ndarray:
        """Mean square by which halves of the brain move each pose, axis by axis: (N, 6).

        Left and right, front and back, top and bottom each take a step of their own, over all
        volumes. With noise alone, their mean would be that of :meth:`covariances`; errors that are
        alike over wide regions show only here. NaN if a half is too small. The values of the
        volumes are released, and have to be read again afterwards.
        """
        system, problem = self.system, self.problem
        if self.found is None or system is None:
            return np.full((len(self.motion), 6), np.nan)
        above = problem.points > problem.center  # parts lie on one side
        if self._least_seen(above) < MIN_POINTS:
            return np.full((len(self.motion), 6), np.nan)
        whole, precision = system.step(POSES), self.found.precision
        firsts = np.searchsorted(problem.parts, np.arange(len(system.gradients)))
        some = problem.points_for_matrix(self.found)
        columns = problem.columns(self.found, self.found.weights, some)
        self._give_own_products(columns)
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
        return np.mean(squares, axis=0)

    def _least_seen(self, above: np.ndarray) -> int:
        """Return the number of points in the smallest of the halves; `above` (V, 3) bool."""
        assert self.found is not None
        seen = self.found.weights > 0
        return min(int(seen[side].sum()) for axis in above.T for side in (axis, ~axis))

    def _give_own_products(self, columns: np.ndarray) -> None:
        """Change columns (Np, …), in place, so that the normal matrix is that of the system."""
        assert self.system is not None
        assert self.found is not None
        n, leverage = len(self.motion), np.diag(self.found.precision)
        blocks = self.system.hessian.reshape(n, len(self.problem.unknowns), n, -1)
        own = np.einsum("iaib->iab", blocks) / np.maximum(leverage, TINY)[:, None, None]
        of_volumes = columns.reshape(n, len(self.problem.unknowns), -1)
        turns = turns_between(of_volumes @ of_volumes.swapaxes(1, 2), own)
        for turn, one in zip(turns, of_volumes, strict=True):
            one[:] = turn @ one

    def _products(self, columns: np.ndarray) -> np.ndarray:
        """Return ``A Aᵀ`` of columns (K, …)."""
        gram = GramMatrix(len(columns), self.problem.n_threads)
        gram.add(columns)
        return gram.whole()

    def pulls_of_slices(self, dwi: DWI, *, unshaded: bool = False) -> np.ndarray:
        """Sum the pulls of the points of each slice on each pose, (2, N, 6, Z).

        With the weights of the points, and with all usable points alike. NaN if too few points are
        left.

        Parameters
        ----------
        dwi : DWI
            The series that the volumes belong to, for the place of its slices.
        unshaded : bool
            Whether the second are without what another brightness of each slice explains.
        """
        problem, found, n = self.problem, self.found, len(self.motion)
        pulls = np.zeros((2, dwi.n_slices, n, 6))
        if found is None:
            return np.full_like(pulls, np.nan).transpose(0, 2, 3, 1)
        height = slice_row(dwi.affine, dwi.acquisition.slicing.axis)

        weights = found.weights.astype(np.float32), found.usable.astype(np.float32)

        def slices_of(volume: int) -> np.ndarray:
            slices = self._slices_at(volume, problem.points, height, dwi.n_slices)
            return slices.astype(np.int16)

        slices = np.stack(parallel_map(slices_of, range(n), n_threads=problem.n_threads))
        residuals = [found.values, found.values]
        if unshaded:
            residuals[1] = self._without_shading(slices, height)

        def sums(chunk: slice) -> list[np.ndarray]:
            points, slopes = problem.points[chunk] - problem.center, problem.slopes(found, chunk)
            pairs = zip(residuals, weights, strict=True)
            factors = (residual[:, chunk] * weight[chunk] for residual, weight in pairs)
            return [sum_twists(points, slopes, one, slices[:, chunk]) for one in factors]

        for both in parallel_iterate(sums, problem.chunks(n), n_threads=problem.n_threads):
            for whole, one in zip(pulls, both, strict=True):
                whole[: len(one)] += one
        return pulls.transpose(0, 2, 3, 1)

    def _without_shading(self, slices: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Take what another brightness of each slice explains out of the residuals, (N, V).

        The brightness is a quadratic function of the place in the slice. Coils stay with the
        scanner while the head turns, and two b=0 volumes may differ in gain: neither is motion
        within a volume.

        Parameters
        ----------
        slices : (N, V) int array
            In which slice of each volume the points were recorded.
        height : (4,) array
            What takes a point of a volume, RAS+ mm and 1, to its slice.
        """
        found = self.found
        assert found is not None
        plane = (self.problem.points - self.problem.center) @ scipy.linalg.null_space(
            height[None, :3]
        )
        linear = np.column_stack([np.ones(len(plane)), plane / plane.std()])
        first, second = np.triu_indices(linear.shape[1])
        shades = (linear[:, first] * linear[:, second]).astype(np.float32)

        def without(volume: int) -> np.ndarray:
            own, left = slices[volume], found.values[volume].copy()
            predicted = (found.samples.values[volume] - left) * found.usable
            order = np.argsort(own, kind="stable")
            for here in np.split(order, np.flatnonzero(np.diff(own[order])) + 1):
                shaded = shades[here] * predicted[here, None]
                matrix = (shaded.T @ shaded).astype(float)
                matrix += (HELD * np.trace(matrix) + TINY) * np.eye(len(matrix))
                left[here] -= shaded @ np.linalg.solve(matrix, shaded.T @ left[here])
            return left

        volumes = range(len(slices))
        return np.stack(parallel_map(without, volumes, n_threads=self.problem.n_threads))

    def scatter_of_periods(self, dwi: DWI, pulls: np.ndarray) -> np.ndarray:
        """Covariance of each pose by the scatter between parts of its time, (N, 6, 6).

        As :meth:`covariances`, but summed over the slices of each of :data:`PERIODS` parts of the
        time instead of parts of the brain, with the other volumes held. With noise alone, both
        would be alike; motion within a volume makes this one larger. NaN if too few points are
        left.

        Parameters
        ----------
        dwi : DWI
            The series that the volumes belong to, for the order of its slices.
        pulls : (N, 6, Z) array
            Of its slices; the first of :meth:`pulls_of_slices`.
        """
        system, n = self.system, len(self.motion)
        if system is None:
            return np.full((n, 6, 6), np.nan)
        period = dwi.acquisition.slicing.periods(dwi.n_slices, PERIODS)
        pulls = pulls @ np.eye(period.max() + 1)[period]
        poses = system.unknowns.columns[POSES]
        blocks = system.hessian.reshape(n, len(system.unknowns), n, -1)
        hessian = np.einsum("ikil->ikl", blocks)[:, poses, poses].copy()
        diagonal = np.einsum("nkk->nk", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        along = self._directions_of_poses(dwi)
        pulls, hessian = along.T @ pulls, along.T @ hessian @ along
        steps = along @ np.linalg.solve(hessian, pulls - pulls.mean(axis=2, keepdims=True))
        return sandwich(steps, n_fitted=1)

    def contradictions(
        self, dwi: DWI, pulls: np.ndarray, usual: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far slices that contradict its pose would take each volume.

        The pose of a volume is the mean over its time. If the head moves meanwhile, the images put
        it elsewhere. A few slices that no pose explains have small weights where the model is
        certain, as for b=0 volumes; and slices that were acquired one after the other show a head
        that is bent, which is partly taken for one that is turned. Here all slices have the same
        weight, and each part of the time has a pose of its own. Steps that most volumes have in
        common are attributed to the model and taken out. If the times of slices are not known,
        each volume takes the order of
        :func:`~eddymotion.data.acquisition.usual_orders` in which they take it farthest. NaN if
        too few points are left.

        Parameters
        ----------
        dwi : DWI
            The series that the volumes belong to, for the order and the place of its slices.
        pulls : (N, 6, Z) array
            Of its slices; the second of :meth:`pulls_of_slices`.
        usual : (N, N) bool array, optional
            Volumes whose median steps are those of the model for each volume; all if not given.

        Returns
        -------
        mean : (N, 6) array
            Of the poses of the parts.
        apart : (N, 6, 6) array
            Covariance of that mean by their scatter.
        """
        found, n = self.found, len(self.motion)
        if found is None or self.system is None:
            return np.full((n, 6), np.nan), np.full((n, 6, 6), np.nan)
        slicing, n_slices = dwi.acquisition.slicing, dwi.n_slices
        along, height = self._directions_of_poses(dwi), slice_row(dwi.affine, slicing.axis)
        alone = replace(self.problem, blocks=self.problem.unknowns.only(POSES).blocks)
        some = alone.points_for_matrix(found)
        columns = alone.columns(found, found.usable.astype(float), some)
        steps = self._steps_of_poses(along, pulls, columns)
        own = self._matrices_of_slices(along, height, n_slices, some, columns)
        periods = (order.periods(n_slices, PERIODS) for order in slicing.possible(n_slices))
        # some orders are others that end where they begin: they tell the same
        alike = sorted({min(tuple(one), tuple(one.max() - one)) for one in periods})
        usual = np.ones((n, n), bool) if usual is None else usual
        poses = _poses_of_periods(steps, own, [np.array(period) for period in alike], usual)
        mean = np.stack([one.mean(axis=2) for one in poses])
        apart = np.stack([_scatter_of_mean(one) for one in poses])
        farthest = ((mean**2).sum(axis=2) + np.einsum("onkk->on", apart)).argmax(axis=0)
        mean, apart = (every[farthest, np.arange(n)] for every in (mean, apart))
        return mean @ along.T, along @ apart @ along.T

    def _directions_of_poses(self, dwi: DWI) -> np.ndarray:
        """Twists along which poses are solved for, orthonormal in mm: (6, k)."""
        (pose,) = self.problem.unknowns.only(POSES).blocks
        if pose.directions is not None:
            return pose.directions
        return np.diag(1 / twist_millimetres(head_scale(dwi.mask, dwi.voxel_sizes)))

    def _steps_of_poses(
        self, along: np.ndarray, pulls: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        """Solve for steps along twists (6, k), by pulls (N, 6, B) and columns of poses (6N, K)."""
        assert self.found is not None
        n = len(self.motion)
        hessian = self._products(columns).reshape(n, 6, n, 6)
        hessian *= self.found.precision[:, None, :, None]
        hessian = np.einsum("ak,iajb,bl->ikjl", along, hessian, along, optimize=True)
        hessian = hessian.reshape(n * along.shape[1], -1)
        diagonal = np.einsum("kk->k", hessian)
        diagonal += DAMPING * diagonal + np.finfo(float).tiny
        right = (along.T @ pulls).reshape(len(hessian), -1)
        steps = scipy.linalg.solve(hessian, right, assume_a="pos")
        return steps.reshape(n, -1, pulls.shape[2])

    def _matrices_of_slices(
        self,
        along: np.ndarray,
        height: np.ndarray,
        n_slices: int,
        some: np.ndarray,
        columns: np.ndarray,
    ) -> np.ndarray:
        """Return the normal matrix of each slice of a volume with itself, (N, Z, k, k).

        Parameters
        ----------
        along : (6, k) array
            Twists that are solved for.
        height : (4,) array
            World point → its slice.
        n_slices : int
        some : (K,) int array
            Which points.
        columns : (6N, K) array
            Of the poses, there.
        """
        found, n, points = self.found, len(self.motion), self.problem.points[some]
        assert found is not None
        each, n_along = np.arange(len(some) + 1), along.shape[1]

        def matrices(volume: int) -> np.ndarray:
            jacobian = along.T @ columns[6 * volume : 6 * volume + 6]
            products = (jacobian[:, None] * jacobian).reshape(-1, len(some))
            slices = self._slices_at(volume, points, height, n_slices)
            member = scipy.sparse.csr_array((np.ones(len(some)), slices, each),
                                            shape=(len(some), n_slices))  # fmt: skip
            summed = found.precision[volume, volume] * (member.T @ products.T)
            return summed.reshape(n_slices, n_along, n_along)

        return np.stack(parallel_map(matrices, range(n), n_threads=self.problem.n_threads))

    def _slices_at(
        self, volume: int, points: np.ndarray, height: np.ndarray, n_slices: int
    ) -> np.ndarray:
        """In which slice of a volume points (V, 3) were recorded, (V,)."""
        mapping = self.motion.mapping(volume)
        if mapping.is_rigid:  # no array of three coordinates
            height = height @ mapping.pose
        else:
            points = mapping.recorded(points)
        slices = points @ height[:3] + height[3]
        return np.clip(np.rint(slices).astype(int), 0, n_slices - 1)


def similar_volumes(bvals: np.ndarray) -> np.ndarray:
    """Volumes whose b-values are like those of each, or the most similar ones, (N, N) bool."""
    apart = np.abs(bvals[:, None] - bvals)
    enough = np.sort(apart, axis=1)[:, :ENOUGH_FOR_MODEL].max(axis=1)
    return apart <= np.maximum(enough, shell_gap(bvals))[:, None]


@dataclass(frozen=True, eq=False)
class Kinds:
    """Which volumes are usual for each, the same for all of a kind.

    Parameters
    ----------
    usual : (K, N) bool array
        For each kind.
    kind : (N,) int array
        Of each volume.
    """

    usual: np.ndarray
    kind: np.ndarray

    @classmethod
    def of(cls, usual: np.ndarray) -> Kinds:
        """Find the kinds in what is usual for each volume, (N, N) bool."""
        return cls(*np.unique(usual, axis=0, return_inverse=True))

    def medians(self, values: np.ndarray) -> np.ndarray:
        """Median of values (N, …) over the volumes that are usual for each: (N, …)."""
        return np.stack([np.median(values[volumes], axis=0) for volumes in self.usual])[self.kind]


def _poses_of_periods(
    steps: np.ndarray, own: np.ndarray, periods: Sequence[np.ndarray], usual: np.ndarray
) -> list[np.ndarray]:
    """Solve for a pose in each period of a volume, (N, k, B), tied to those before and after.

    Slices that lost signal show nothing of where the head was: they take the steps of usual
    volumes, and periods without any others follow their neighbours.

    Parameters
    ----------
    steps : (N, k, Z) array
        By which each slice would move the pose, mm.
    own : (N, Z, k, k) array
        Normal matrix of each slice with itself.
    periods : sequence of (Z,) int array
        Of each slice, in one order of the slices or another.
    usual : (N, N) bool array
        Volumes whose median steps are those of the model for each volume.
    """
    kinds, seen = Kinds.of(usual), np.einsum("nzkk->nz", own)
    shown = seen >= LEAST_SHOWN * kinds.medians(seen)
    filled, found = np.where(shown[:, None], steps, kinds.medians(steps)), []
    for period in periods:
        member = (period[:, None] == np.unique(period)).astype(float)
        parts = filled @ member
        parts -= kinds.medians(parts)
        parts *= (shown @ member > 0)[:, None]
        found.append(_tied(parts, np.einsum("nzkl,zb->nbkl", own, member, optimize=True)))
    return found


def _tied(parts: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Solve for poses of periods (N, k, B) that follow each other.

    Parameters
    ----------
    parts : (N, k, B) array
        By which each period would move the pose, mm.
    matrices : (N, B, k, k) array
        Normal matrix of each period.
    """
    pulls = matrices.sum(axis=1) @ parts
    n, n_parts, k, _ = matrices.shape
    away = np.diff(np.eye(n_parts), axis=0)
    ties = STIFFNESS * np.kron(away.T @ away + DAMPING * np.eye(n_parts), np.eye(k))
    size = np.einsum("nbkk->n", matrices) / (n_parts * k)
    whole = np.where(size > 0, size, 1.0)[:, None, None] * ties
    between = whole.reshape(n, n_parts, k, n_parts, k)
    for part in range(n_parts):
        between[:, part, :, part] += matrices[:, part]
    found = np.linalg.solve(whole, pulls.swapaxes(1, 2).reshape(n, -1, 1))
    return found.reshape(n, n_parts, k).swapaxes(1, 2)


def _scatter_of_mean(poses: np.ndarray) -> np.ndarray:
    """Covariance of the mean of poses (N, k, B) by their scatter, (N, k, k)."""
    apart = poses - poses.mean(axis=2, keepdims=True)
    return sandwich(apart / poses.shape[2], n_fitted=1)

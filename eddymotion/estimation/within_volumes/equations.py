# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton on the course of the head through all volumes at once.

As :mod:`eddymotion.estimation.equations.coupled`, with the poses of knots in time in place of
those of volumes. A point ``x`` of the head is read in all slices near it, each at its own pose
(:mod:`eddymotion.images.stack`), ``y_i(x) = Σ_k w_k S_k(T_ik x)``. A displacement of the content
of slice ``k`` by ``δ_k`` changes it by ``−w_k J_i δ_k``; with ``B_m(t_k)`` the part of knot ``m``
in the pose of that slice, ::

    J_im = β_im J_i,   β_im(x) = Σ_k w_k B_m(t_k)
    G_im = Σ_x w β_im J_i (Py)_i,   H_(im)(jn) = P_ij Σ_x w β_im β_jn J_i J_jᵀ

``β`` and ``H`` are never formed (:mod:`eddymotion.estimation.within_volumes.matrix`).

*What the data do not determine.* A displacement of the slices that is the same in all volumes of a
group only warps the frame of the head: the volumes agree as before. ``G`` and ``H`` are centred
over the volumes of a group for each knot, before the knots of a volume at rest are merged, so that
neither noise nor the approximations of ``J`` act there. Only the prior determines this part, and
it keeps the head as still as possible. Levenberg's damping is centred in the same way.

*Units.* ``H`` counts points whose noise is correlated, so that its covariances are too small. Both
``G`` and ``H`` are divided by that factor
(:mod:`eddymotion.estimation.within_volumes.overcount`).

``T ← T exp(−δ)`` are the twists of a step; the unknowns are twists ``ξ`` about the centre of the
brain, ``T = exp(ξ)``, in which the head is interpolated between knots: ``δ = −A dξ`` with
``A = blockdiag(Rᵀ, J_r(ω))``, ``J_r`` the right Jacobian of rotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.few_terms import Filter
from eddymotion.estimation.equations.samples import MAX_MISSING, filled, smoothed
from eddymotion.estimation.equations.unknowns import Poses
from eddymotion.estimation.within_volumes.kernels import add_pulls_of_all
from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.estimation.within_volumes.matrix import (
    GroupMatrix,
    knots_of_bands,
    slice_products,
    without_common,
)
from eddymotion.estimation.within_volumes.overcount import find_overcount
from eddymotion.estimation.within_volumes.readings import NEAR_VOXELS, Readings
from eddymotion.images.pyramid import blocks_of
from eddymotion.images.stack import SliceStack
from eddymotion.machine.parallel import parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, right_jacobian
from eddymotion.models import LinearModel
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.robust import Cauchy, sandwich

SHOWS_ENOUGH = 0.1
"""Least information of a slice, relative to the usual one, to be part of a median."""

DISCORD_DAMPING = 1e-9

MEDIAN_OF_SIX = 5.35
"""Of χ² with six degrees of freedom."""

VALUES_FOR_HESSIAN, LEAST_FOR_HESSIAN, MOST_FOR_HESSIAN = 500_000, 3_000, 6_000
"""Number of values (of a volume at a point) that determine the normal matrix, and limits for the
number of points. Errors of the matrix do not change where the steps end."""

POINTS_FOR_OVERCOUNT = 1_500
MOST_MISSING = 2 * MAX_MISSING


@dataclass(frozen=True, eq=False)
class Member:
    """A group of volumes that predict each other.

    Parameters
    ----------
    volumes : (n,) index array
    gradients : Gradients
        Theirs.
    model : LinearModel
        Fitted.
    leave_one_out : bool
        As of :class:`~eddymotion.estimation.equations.coupled.CoupledProblem`.
    """

    volumes: np.ndarray
    gradients: Gradients
    model: LinearModel
    leave_one_out: bool

    def turned(self, twists: np.ndarray) -> Gradients:
        """Its gradients in the frame of the head, by twists of the volumes of the series."""
        return self.gradients.rotated(_rotations(twists[self.volumes]))

    def precision(self, twists: np.ndarray) -> np.ndarray:
        """``P`` at twists of the volumes of the series, (n, n)."""
        return self.model.precision(self.turned(twists))

    def fitted_to(self, samples: StackSamples, twists: np.ndarray, every: int) -> Member:
        """Fit the model to what every so many-th point shows at twists of the volumes."""
        values, missing = samples.values[:, ::every], samples.missing[:, ::every]
        usable = missing.mean(axis=0) <= MOST_MISSING
        precision = Filter.of(self.precision(twists))
        whole = filled(values[:, usable], missing[:, usable], precision).astype(float)
        scatter = whole @ whole.T / whole.shape[1]
        return replace(self, model=self.model.fit(scatter, self.turned(twists)))


@dataclass(frozen=True, eq=False)
class StackSamples:
    """Signal of the volumes of a group at the points.

    Parameters
    ----------
    values : (n, V) float32 array
    slopes : (3, n, V) float32 array
    missing : (n, V) bool array
    weights : (n, V, 8) float32 array
        Of the slices at each point, from `first` on.
    first : (n, V) int32 array
    """

    values: np.ndarray
    slopes: np.ndarray
    missing: np.ndarray
    weights: np.ndarray
    first: np.ndarray


@dataclass(frozen=True, eq=False)
class CourseEquations:
    """Normal equations of the knots, for steps ``δ``.

    Parameters
    ----------
    knots : Knots
    gradient : (K, 6) array
    parts : sequence of (volumes, GroupMatrix)
        ``H``, group by group.
    cost : (N,) array
        Of each volume.
    discord : (N,) array
        Factor on the covariance of a pose, of at least one: how much more parts of the brain
        contradict each other than in usual volumes. Where the head moved fast, fields changed with
        it, signal was lost and gaps were left, which no pose explains. In a head with an
        off-resonance field, the errors of the volumes that moved most were 1.5 to 1.7 times those
        of the covariances, and this factor was 3.6.
    turn : (K, 6, 6) array
        ``A``: changes of the twists → steps, ``δ = −A dξ``.
    """

    knots: Knots
    gradient: np.ndarray
    parts: Sequence[tuple[np.ndarray, GroupMatrix]]
    cost: np.ndarray
    discord: np.ndarray
    turn: np.ndarray

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """The unknowns of each volume."""
        return [np.unique(rows) for rows in self.knots.row]

    @cached_property
    def own(self) -> list[np.ndarray]:
        """Blocks of ``H`` of the unknowns of each volume, (6 s, 6 s); zero if left out."""
        found = [np.zeros((6 * len(rows),) * 2) for rows in self.rows]
        for volumes, matrix in self.parts:
            for volume, square in zip(volumes, matrix.own, strict=True):
                found[volume] = square
        return found

    def times(self, steps: np.ndarray) -> np.ndarray:
        """Multiply ``H`` with steps (K, 6)."""
        found = np.zeros_like(steps)
        for volumes, matrix in self.parts:
            rows = np.unique(self.knots.row[volumes])
            found[rows] = matrix.times(steps[rows])
        return found

    def without_common(self, step: np.ndarray) -> np.ndarray:
        """Remove from a change of the twists (K, 6) the motion that all volumes share."""
        moved = np.einsum("kab,kb->ka", self.turn, step)
        return np.linalg.solve(self.turn, (moved - moved.mean(axis=0))[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class SlicePulls:
    """Normal equations of volumes each of whose slices has a pose of its own.

    For changes of the twists, in millimetres of a human head.

    Parameters
    ----------
    volumes : (n,) index array
    twists : (n, 6) array
        Of the one pose of each volume at which they are linearised.
    gradient : (n, Z, 6) array
    hessian : (n, Z, B, 6, 6) array
        Of each slice with itself and those above it; others share no point.
    """

    volumes: np.ndarray
    twists: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray

    def calibrated(self) -> SlicePulls:
        """Divide by the ratio of the pulls of most slices to those expected from noise."""
        own = self.hessian[:, :, 0]
        size = np.trace(own, axis1=2, axis2=3)
        seen = size > SHOWS_ENOUGH * np.median(size)
        held = own[seen] + 1e-9 * size[seen, None, None] * np.eye(6)
        steps = np.linalg.solve(held, self.gradient[seen][..., None])[..., 0]
        square = np.einsum("sa,sa->s", steps, self.gradient[seen])
        beyond = max(float(np.median(square)) / MEDIAN_OF_SIX, 1.0)
        return replace(self, gradient=self.gradient / beyond, hessian=self.hessian / beyond)

    def of_knots(self, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gradient (n, 6 M) and normal matrix (n, 6 M, 6 M) of knots of basis (Z, M)."""
        gradient = np.einsum("zm,nza->nma", basis, self.gradient)
        return gradient.reshape(len(gradient), -1), knots_of_bands(basis, self.hessian)


@dataclass(frozen=True, eq=False)
class CourseProblem:
    """All volumes of a series at one level.

    Parameters
    ----------
    stacks : sequence of N SliceStack
        The volumes, band-passed in the planes of their slices.
    members : sequence of Member
    knots : Knots
    points : (V, 3) array
        In the head's frame, RAS+ mm.
    center : (3,) array
        Centre of the brain, RAS+ mm.
    fields : Motion
        Its eddy-current shifts and fields displace the volumes as well.
    block_mm : float
        Edge of the blocks between which errors count as independent.
    n_threads : int
        The result does not depend on it.
    """

    stacks: Sequence[SliceStack]
    members: Sequence[Member]
    knots: Knots
    points: np.ndarray
    center: np.ndarray
    fields: Motion
    block_mm: float
    n_threads: int
    kept: dict[int, Readings] = field(default_factory=dict, init=False)
    slabs: list[slice] = field(init=False)
    block: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        stack = self.stacks[0]
        row = np.linalg.inv(stack.affine)[stack.axis]
        slab = np.rint(self.points @ row[:3] + row[3]).astype(int)
        order = np.argsort(slab, kind="stable")  # neighbours lie in the same slices
        object.__setattr__(self, "points", self.points[order])
        edges = np.flatnonzero(np.diff(slab[order])) + 1
        bounds = np.concatenate([[0], edges, [len(slab)]])
        slabs = [slice(a, b) for a, b in pairwise(bounds)]
        object.__setattr__(self, "slabs", slabs)
        block = blocks_of(self.points - self.center, self.block_mm)
        object.__setattr__(self, "block", block)

    @property
    def n_volumes(self) -> int:
        """Number of volumes ``N``."""
        return len(self.stacks)

    def poses(self, twists: np.ndarray) -> np.ndarray:
        """Poses of the slices, (N, Z, 4, 4), from the twists of the knots (K, 6)."""
        poses = exp_rigid(self.knots.of_slices(twists), self.center)
        eddy = self.fields.eddy_currents
        return poses if eddy is None else eddy.shifts[:, None] @ poses

    def sample(self, member: Member, twists: np.ndarray) -> StackSamples:
        """Read the volumes of a group, except those that hardly moved since the last reading."""
        poses, n = self.poses(twists), len(member.volumes)
        values = np.empty((n, len(self.points)), np.float32)
        means = exp_rigid(self.knots.of_volumes(twists), self.center)
        eddy = self.fields.eddy_currents
        means = means if eddy is None else eddy.shifts @ means
        kept = self._kept(member)

        def read(index: int) -> None:
            volume = member.volumes[index]
            shown = kept.shown(index, poses[volume])
            if shown is None:
                mapping = replace(self.fields.mapping(volume), pose=means[volume], slices=None)
                moved, factor = mapping.moved_by_fields(self.points)
                reading = self.stacks[volume].read(self.points, poses[volume], moved)
                kept.keep(index, poses[volume], reading, factor)
                shown = kept.values[index]
            values[index] = shown

        parallel_map(read, range(n), n_threads=self.n_threads)
        missing = ~np.isfinite(values)
        values[missing] = 0.0
        return StackSamples(values, kept.slopes, missing, kept.weights, kept.first)

    def _kept(self, member: Member) -> Readings:
        """Return the last readings of a group."""
        stack, first = self.stacks[0], int(member.volumes[0])
        if first not in self.kept:
            voxel = float(np.cbrt(abs(np.linalg.det(stack.affine[:3, :3]))))
            n, n_slices = len(member.volumes), len(self.knots.basis)
            self.kept[first] = Readings(self.points, n, n_slices, NEAR_VOXELS * voxel)
        return self.kept[first]

    def fitted(self, twists: np.ndarray, every: int) -> CourseProblem:
        """Fit the models of the groups to their volumes, unless they are fitted."""
        means = self.knots.of_volumes(twists)
        members = [
            member
            if member.model.fitted
            else member.fitted_to(self.sample(member, twists), means, every)
            for member in self.members
        ]
        fitted = replace(self, members=members)
        fitted.kept.update(self.kept)
        return fitted

    def linearise(self, twists: np.ndarray) -> CourseEquations:
        """Set up the normal equations at the twists of the knots (K, 6)."""
        knots, parts = self.knots, []
        gradient = np.zeros((knots.n_rows, 6))
        cost, discord = np.zeros(self.n_volumes), np.ones(self.n_volumes)
        for member in self.members:
            part = _Assembly(self, member, twists)
            rows = np.unique(knots.row[member.volumes])
            gradient[rows], matrix, own = part.linearised()
            parts.append((member.volumes, matrix))
            cost[member.volumes] = part.cost
            discord[member.volumes] = np.maximum(own / np.median(own), 1.0)
        return CourseEquations(knots, gradient, parts, cost, discord, right_jacobians(twists))

    def pulls_of_slices(self, member: Member, twists: np.ndarray, in_mm: np.ndarray) -> SlicePulls:
        """Linearise slice by slice at one pose a volume.

        Parameters
        ----------
        member : Member
        twists : (N, 6) array
        in_mm : (6,) array
            Millimetres for each unit of a twist.
        """
        gradient, hessian = _Assembly(self, member, twists).of_slices()
        own = twists[member.volumes]
        turn = right_jacobians(own) / in_mm
        return SlicePulls(
            member.volumes,
            own * in_mm,
            np.einsum("nab,nza->nzb", turn, gradient),
            np.einsum("nac,nzoab,nbd->nzocd", turn, hessian, turn, optimize=True),
        )


class _Assembly:
    """The normal equations of one group, slab by slab.

    Parameters
    ----------
    problem : CourseProblem
    member : Member
    twists : (K, 6) array
    """

    def __init__(self, problem: CourseProblem, member: Member, twists: np.ndarray) -> None:
        self.problem, self.member = problem, member
        knots = problem.knots
        samples = problem.sample(member, twists)
        self.samples = samples
        precision = member.precision(knots.of_volumes(twists))
        self.P, self.filter = precision.astype(np.float32), Filter.of(precision)
        self.leverage = np.maximum(np.diag(self.P), LEVERAGE_GUARD)[:, None]
        holes = np.flatnonzero(samples.missing.any(axis=0))
        samples.values[:, holes] = filled(
            samples.values[:, holes], samples.missing[:, holes], self.filter
        )
        self.residual = self.filter @ samples.values
        self.residual[samples.missing] = 0.0
        misfit = np.einsum("nv,nv->v", samples.values, self.residual) / len(samples.values)
        misfit = np.maximum(misfit, 0.0)
        usable = samples.missing.mean(axis=0) <= MOST_MISSING
        weights = Cauchy.of(misfit[usable]).weights(misfit)
        self.weights = np.where(usable, weights, 0.0).astype(np.float32)
        square = self.residual**2 / self.leverage
        limit = 4 * np.median(square[:, usable]) + np.finfo(np.float32).tiny
        self.cost = np.log1p(square[:, usable] / limit).mean(axis=1)

    def jacobian(self, slab: slice) -> np.ndarray:
        """``J`` of the smoothed volumes, (n, 6, V)."""
        samples, problem = self.samples, self.problem
        leverage = self.leverage[:, 0] if self.member.leave_one_out else None
        slopes, missing = samples.slopes[:, :, slab], samples.missing[:, slab]
        slopes = smoothed(slopes, missing, self.filter, leverage)
        return Poses(problem.center).columns(problem.fields, problem.points[slab], slopes)

    def linearised(self) -> tuple[np.ndarray, GroupMatrix, np.ndarray]:
        """Return ``G`` (k, 6) and ``H`` of the k unknowns of the group, without shared motion.

        Also how much parts of the brain contradict each other in each volume, (n,).
        """
        problem, n = self.problem, len(self.member.volumes)
        knots = Knots(problem.knots.basis, problem.knots.moving[self.member.volumes])
        n_points = np.clip(VALUES_FOR_HESSIAN // n, LEAST_FOR_HESSIAN, MOST_FOR_HESSIAN)
        every = max(1, round(len(problem.points) / n_points))
        of_slices = np.zeros((n, len(knots.basis), 6))
        of_blocks = np.zeros((problem.block.max() + 1, n, 6))
        columns = []

        def of_slab(slab: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            jacobian = self.jacobian(slab)
            factors = self.residual[:, slab] * self.weights[slab]
            by_blocks = self.by_blocks(slab, jacobian * factors[:, None])
            upright = np.ascontiguousarray(jacobian.transpose(0, 2, 1))
            some = slice(-slab.start % every, None, every)
            roots = np.sqrt(every * self.weights[slab][some])[:, None]
            return self.pulls(slab, upright, factors), by_blocks, upright[:, some] * roots

        slabs = parallel_iterate(of_slab, problem.slabs, n_threads=problem.n_threads)
        for pulls, by_blocks, few_columns in slabs:
            of_slices += pulls
            of_blocks += by_blocks
            columns.append(few_columns)
        samples = self.samples
        matrix = GroupMatrix(
            knots,
            self.P,
            np.concatenate(columns, axis=1),
            np.ascontiguousarray(samples.weights[:, ::every]),
            np.ascontiguousarray(samples.first[:, ::every]),
            n_threads=problem.n_threads,
        )
        few = max(1, round(matrix.first.shape[1] / POINTS_FOR_OVERCOUNT))
        overcount = find_overcount(of_blocks, matrix.between_volumes(few))
        of_knots = np.einsum("zm,nza->nma", knots.basis, of_slices)
        gradient = knots.summed(without_common(of_knots)) / overcount
        return (
            gradient,
            replace(matrix, overcount=overcount),
            discord(of_blocks, matrix.of_volumes),
        )

    def pulls(self, slab: slice, jacobian: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Return the gradient (n, Z, 6) at points of a slab, from ``J`` (n, V, 6) and (n, V)."""
        samples, found = self.samples, np.zeros((len(factors), len(self.problem.knots.basis), 6))
        weights, first = samples.weights[:, slab], samples.first[:, slab]
        add_pulls_of_all(jacobian, weights, first, factors, found)
        return found

    def of_slices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``G`` (n, Z, 6) and ``H`` (n, Z, B, 6, 6) as those of :class:`SlicePulls`."""
        n, n_slices = len(self.member.volumes), len(self.problem.knots.basis)
        gradient, columns = np.zeros((n, n_slices, 6)), []

        def of_slab(slab: slice) -> tuple[np.ndarray, np.ndarray]:
            jacobian = np.ascontiguousarray(self.jacobian(slab).transpose(0, 2, 1))
            factors = self.residual[:, slab] * self.weights[slab]
            roots = np.sqrt(self.weights[slab])[:, None]
            return self.pulls(slab, jacobian, factors), jacobian * roots

        slabs, n_threads = self.problem.slabs, self.problem.n_threads
        for pulls, of_points in parallel_iterate(of_slab, slabs, n_threads=n_threads):
            gradient += pulls
            columns.append(of_points)
        jacobian, samples = np.concatenate(columns, axis=1), self.samples

        def bands(volume: int) -> np.ndarray:
            own = jacobian[volume], samples.weights[volume], samples.first[volume]
            return self.P[volume, volume] * slice_products(*own, n_slices)

        hessian = parallel_map(bands, range(n), n_threads=self.problem.n_threads)
        return without_common(gradient), np.stack(hessian)

    def by_blocks(self, slab: slice, pull: np.ndarray) -> np.ndarray:
        """Sum gradients at points of a slab (n, 6, V) over blocks of the brain: (B, n, 6)."""
        blocks = self.problem.block
        member = scipy.sparse.csr_array(
            (np.ones(pull.shape[2]), blocks[slab], np.arange(pull.shape[2] + 1)),
            shape=(pull.shape[2], blocks.max() + 1),
        )
        return (member.T @ pull.reshape(-1, pull.shape[2]).T).reshape(-1, *pull.shape[:2])


def discord(pulls: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Variance of each pose from blocks of the brain, relative to that from ``H``, (n,).

    Parameters
    ----------
    pulls : (B, n, 6) array
        ``G`` of each block.
    square : (n, 6, 6) array
        ``H`` of each volume.
    """
    pulls = pulls - pulls.mean(axis=1, keepdims=True)
    size = np.trace(square, axis1=1, axis2=2)[:, None, None]
    square = square + DISCORD_DAMPING * size * np.eye(6)
    by_blocks = sandwich(np.linalg.solve(square, pulls.transpose(1, 2, 0)))
    return np.einsum("nkk,nkk->nk", by_blocks, 1 / np.linalg.inv(square)).mean(axis=1)


def right_jacobians(twists: np.ndarray) -> np.ndarray:
    """Return ``A`` of twists (K, 6), ``δ = −A dξ``: (K, 6, 6)."""
    found = np.zeros((len(twists), 6, 6))
    found[:, :3, :3] = _rotations(twists).transpose(0, 2, 1)
    found[:, 3:, 3:] = right_jacobian(twists[:, 3:])
    return found


def _rotations(twists: np.ndarray) -> np.ndarray:
    """Rotations of twists (K, 6), (K, 3, 3)."""
    rotations: np.ndarray = scipy.spatial.transform.Rotation.from_rotvec(twists[:, 3:]).as_matrix()
    return rotations

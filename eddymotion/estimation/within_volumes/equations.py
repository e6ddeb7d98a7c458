# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton on the course of the head through all volumes at once.

As :mod:`eddymotion.estimation.coupled`, with the poses of knots in time in place of those of
volumes. A point ``x`` of the head is read in all slices near it, each at its own pose
(:mod:`eddymotion.images.stack`), ``y_i(x) = Σ_k w_k S_k(T_ik x)``. A displacement of the content
of slice ``k`` by ``δ_k`` changes it by ``−w_k J_i δ_k``; with ``B_m(t_k)`` the part of knot ``m``
in the pose of that slice, ::

    J_im = β_im J_i,   β_im(x) = Σ_k w_k B_m(t_k)
    G_im = Σ_x w β_im J_i (Py)_i,   H_(im)(jn) = P_ij Σ_x w β_im β_jn J_i J_jᵀ

*What the data do not show.* A displacement of the slices that is the same in all volumes of a
group only warps the frame of the head: the volumes agree as before. ``G`` and ``H`` are centred
over the volumes of a group for each knot, before the knots of a volume at rest are put together,
so that neither noise nor the approximations of ``J`` pull there; the prior alone decides, and
holds still what it can. Levenberg's damping is centred likewise.

*Units.* ``H`` counts points whose noise is correlated. Both are divided by how much too small the
covariances are that it tells (:mod:`eddymotion.estimation.within_volumes.overcount`).

``T ← T exp(−δ)`` are the twists of a step; the unknowns are twists ``ξ`` about the centre of the
brain, ``T = exp(ξ)``, in which the head is interpolated between knots: ``δ = −A dξ`` with
``A = blockdiag(Rᵀ, J_r(ω))``, ``J_r`` the right Jacobian of rotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.linalg import blas
from scipy.spatial.transform import Rotation

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.coupled import MAX_MISSING, filled, smoothed
from eddymotion.estimation.unknowns import Poses
from eddymotion.estimation.within_volumes.kernels import add_products
from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.estimation.within_volumes.overcount import find_overcount, of_whole_volumes
from eddymotion.images.pyramid import BLOCK_MM, blocks_of
from eddymotion.images.stack import SliceStack
from eddymotion.images.stack_kernels import N_NODES
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, right_jacobian
from eddymotion.models import LinearModel
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.robust import Cauchy, sandwich

LEAST_PART = 0.02
"""Knots of less part in all points of a slab are left out of its share of ``H``."""

SHOWS_ENOUGH = 0.1
"""Slices that tell less than this part of what a usual one tells are left out of a median."""

DISCORD_DAMPING = 1e-9

MEDIAN_OF_SIX = 5.35
"""Of χ² with six degrees of freedom."""

POINTS_FOR_HESSIAN = 6_000
MOST_MISSING = 2 * MAX_MISSING

AXES = np.arange(6)


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
        As of :class:`~eddymotion.estimation.coupled.CoupledProblem`.
    """

    volumes: np.ndarray
    gradients: Gradients
    model: LinearModel
    leave_one_out: bool = False

    def precision(self, twists: np.ndarray) -> np.ndarray:
        """``P`` at the rotations of twists of the volumes of the series, (n, n)."""
        turned = Rotation.from_rotvec(twists[self.volumes, 3:]).as_matrix()
        return self.model.precision(self.gradients.rotated(turned))


@dataclass(frozen=True, eq=False)
class StackSamples:
    """What the volumes of a group show at the points.

    Parameters
    ----------
    values : (n, V) float32 array
    slopes : (3, n, V) float32 array
    missing : (n, V) bool array
    parts : (n, V, M) float32 array
        ``β``
    """

    values: np.ndarray
    slopes: np.ndarray
    missing: np.ndarray
    parts: np.ndarray


@dataclass(frozen=True, eq=False)
class CourseEquations:
    """Normal equations of the knots, for steps ``δ``.

    Parameters
    ----------
    gradient : (K, 6) array
    hessian : (K, 6, K, 6) array
    cost : (N,) array
        Of each volume.
    turn : (K, 6, 6) array
        ``A``: changes of the twists → steps, ``δ = −A dξ``.
    """

    gradient: np.ndarray
    hessian: np.ndarray
    cost: np.ndarray
    turn: np.ndarray

    def of_twists(self, square: np.ndarray) -> np.ndarray:
        """Turn a matrix (K, 6, K, 6) between steps into one between twists, (6 K, 6 K)."""
        square = np.einsum("kac,kalb->kclb", self.turn, square, optimize=True)
        square = np.einsum("kcla,lad->kcld", square, self.turn, optimize=True)
        return square.reshape(6 * len(self.turn), -1)

    def without_common(self, step: np.ndarray) -> np.ndarray:
        """Take the motion that all have in common out of a change of the twists, (K, 6)."""
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
        """Divide by how much farther most slices pull than noise would make them."""
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
        n, n_slices, reach = self.hessian.shape[:3]
        n_knots = basis.shape[1]
        gradient = np.einsum("zm,nza->nma", basis, self.gradient).reshape(n, -1)
        whole = np.zeros((n, n_knots, 6, n_knots, 6))
        for apart in range(reach):
            below, above = basis[: n_slices - apart], basis[apart:]
            both = np.einsum("zm,zl->zml", below, above).reshape(len(below), -1)
            of_pairs = self.hessian[:, : n_slices - apart, apart].reshape(n, len(below), 36)
            found = (both.T @ of_pairs).reshape(n, n_knots, n_knots, 6, 6)
            found = found.transpose(0, 1, 3, 2, 4)
            whole += found if apart == 0 else found + found.transpose(0, 3, 4, 1, 2)
        return gradient, whole.reshape(n, 6 * n_knots, -1)


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
        What else moves the volumes: the shifts of the eddy currents and the fields of this motion.
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
    block_mm: float = BLOCK_MM
    n_threads: int = 1
    slabs: list[slice] = field(init=False)
    block: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        stack = self.stacks[0]
        row = np.linalg.inv(stack.affine)[stack.axis]
        slab = np.rint(self.points @ row[:3] + row[3]).astype(int)
        order = np.argsort(slab, kind="stable")  # a slice's knots are the same for all of a slab
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
        """Read the volumes of a group."""
        poses, n_points = self.poses(twists), len(self.points)
        n = len(member.volumes)
        values = np.empty((n, n_points), np.float32)
        slopes = np.empty((3, n, n_points), np.float32)
        parts = np.empty((n, n_points, self.knots.n_knots), np.float32)
        means = exp_rigid(self.knots.of_volumes(twists), self.center)
        eddy = self.fields.eddy_currents
        means = means if eddy is None else eddy.shifts @ means

        def read(index: int) -> None:
            volume = member.volumes[index]
            mapping = replace(self.fields.mapping(volume), pose=means[volume], slices=None)
            moved, factor = mapping.moved_by_fields(self.points)
            reading = self.stacks[volume].read(self.points, poses[volume], moved)
            values[index] = reading.values * factor
            slopes[:, index] = reading.slopes.T
            parts[index] = reading.mixed(self.knots.basis)

        parallel_map(read, range(n), n_threads=self.n_threads)
        missing = ~np.isfinite(values)
        values[missing] = 0.0
        return StackSamples(values, slopes, missing, parts)

    def fitted(self, twists: np.ndarray, every: int) -> CourseProblem:
        """Fit the models of the groups to what their volumes show, where they are not fitted."""
        some = replace(self, points=self.points[::every])
        means = self.knots.of_volumes(twists)
        members = []
        for member in self.members:
            if not member.model.fitted:
                samples = some.sample(member, twists)
                usable = samples.missing.mean(axis=0) <= MOST_MISSING
                turned = member.gradients.rotated(
                    Rotation.from_rotvec(means[member.volumes, 3:]).as_matrix()
                )
                precision = member.precision(means)
                whole = filled(samples.values[:, usable], samples.missing[:, usable], precision)
                scatter = whole @ whole.T / whole.shape[1]
                member = replace(member, model=member.model.fit(scatter, turned))
            members.append(member)
        return replace(self, members=members)

    def linearise(self, twists: np.ndarray) -> CourseEquations:
        """Set up the normal equations at the twists of the knots (K, 6)."""
        knots = self.knots
        gradient = np.zeros((knots.n_rows, 6))
        hessian = np.zeros((knots.n_rows, 6, knots.n_rows, 6))
        cost = np.zeros(self.n_volumes)
        for member in self.members:
            part = _Assembly(self, member, twists)
            rows = np.unique(knots.row[member.volumes])
            of_group, square, overcount = part.centred()
            gradient[rows] = of_group / overcount
            hessian[np.ix_(rows, AXES, rows, AXES)] = square / overcount
            cost[member.volumes] = part.cost
        return CourseEquations(gradient, hessian, cost, right_jacobians(twists))

    def pulls_of_slices(self, member: Member, twists: np.ndarray, in_mm: np.ndarray) -> SlicePulls:
        """Linearise slice by slice at one pose a volume.

        Parameters
        ----------
        member : Member
        twists : (N, 6) array
        in_mm : (6,) array
            Millimetres for each unit of a twist.
        """
        n_slices = len(self.knots.basis)
        problem = replace(self, knots=Knots(np.eye(n_slices), np.zeros(self.n_volumes, bool)))
        part = _Assembly(problem, member, twists)
        gradient, hessian = part.of_slices()
        own = twists[member.volumes]
        turn = right_jacobians(own) / in_mm
        return SlicePulls(
            member.volumes,
            own * in_mm,
            np.einsum("nab,nza->nzb", turn, gradient),
            np.einsum("nac,nzoab,nbd->nzocd", turn, hessian, turn, optimize=True),
        )

    def discord(self, twists: np.ndarray) -> np.ndarray:
        """How much more parts of the brain contradict each other than in usual volumes, (N,).

        As a factor on the covariance of a pose, from one on. Where the head moved fast, fields
        changed with it, signal was lost and gaps were left: what no pose explains. On a head with
        an off-resonance field, errors of the volumes that moved most were 1.5 to 1.7 times what
        the covariances say, and this was 3.6.
        """
        some, found = replace(self, points=self.points[::2]), np.ones(self.n_volumes)
        for member in self.members:
            own = _Assembly(some, member, twists).discord()
            found[member.volumes] = own / np.median(own)
        return np.maximum(found, 1.0)


class _Assembly:
    """The normal equations of one group, by slabs.

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
        self.P = member.precision(knots.of_volumes(twists)).astype(np.float32)
        self.leverage = np.maximum(np.diag(self.P), LEVERAGE_GUARD)[:, None]
        self.smoother = self.P / self.leverage if member.leave_one_out else self.P
        self.residual = np.empty_like(samples.values)
        for slab in problem.slabs:
            values, gone = samples.values[:, slab], samples.missing[:, slab]
            if gone.any():
                values = filled(values, gone, self.P)
                samples.values[:, slab] = values
            residual = self.P @ values
            residual[gone] = 0.0
            self.residual[:, slab] = residual
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
        slopes = smoothed(samples.slopes[:, :, slab], samples.missing[:, slab], self.smoother)
        return Poses(problem.center).columns(problem.fields, problem.points[slab], slopes)

    def centred(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return ``G`` (k, 6) and ``H`` (k, 6, k, 6) of the k unknowns of the group, centred.

        And by how much both count too much.
        """
        knots = Knots(self.problem.knots.basis, self.problem.knots.moving[self.member.volumes])
        n, n_knots = len(self.member.volumes), knots.n_knots
        every = max(1, round(len(self.problem.points) / POINTS_FOR_HESSIAN))
        of_knots = np.zeros((n, n_knots, 6))
        square = np.zeros((knots.n_rows, 6, knots.n_rows, 6), np.float32)
        common = np.zeros((n, n_knots, 6, n_knots, 6))
        of_blocks = np.zeros((self.problem.block.max() + 1, n, 6))
        for slab in self.problem.slabs:
            jacobian, parts = self.jacobian(slab), self.samples.parts[:, slab]
            weights = self.weights[slab]
            pull = jacobian * (self.residual[:, slab] * weights)[:, None]
            of_knots += np.einsum("nvm,nav->nma", parts, pull, optimize=True)
            of_blocks += self.by_blocks(slab, pull)
            some = slice(None, None, every)
            root = np.sqrt(every * weights[some])
            jacobian = jacobian[:, :, some] * root
            parts = _without_small(parts[:, some])
            self._add_square(square, knots, jacobian, parts)
            common += self._with_all(knots, jacobian, parts)
        whole = _from_upper(square)
        own = np.flatnonzero(knots.moving)
        if len(own):  # the same numbers: what all do alike has to vanish to the last digit
            rows = knots.row[own]
            among = whole[rows.ravel()[:, None], :, rows.ravel()]
            among = among.reshape(len(own), n_knots, len(own), n_knots, 6, 6).sum(axis=2)
            common[own] += among.transpose(0, 1, 3, 2, 4)
        overcount = find_overcount(of_blocks, of_whole_volumes(whole, knots.row[:, 0]))
        return *_centred(knots, of_knots, whole, common), overcount

    def of_slices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``G`` (n, Z, 6) and ``H`` (n, Z, B, 6, 6) as those of :class:`SlicePulls`."""
        n, _, n_slices = self.samples.parts.shape
        gradient = np.zeros((n, n_slices, 6))
        hessian = np.zeros((n, n_slices, N_NODES, 6, 6))
        own = np.diag(self.P)[:, None, None]
        for slab in self.problem.slabs:
            parts, weights = _without_small(self.samples.parts[:, slab]), self.weights[slab]
            slices = np.flatnonzero(parts.any(axis=(0, 1)))
            jacobian, near = self.jacobian(slab), parts[:, :, slices].transpose(0, 2, 1)
            pull = jacobian * (self.residual[:, slab] * weights)[:, None]
            gradient[:, slices] += near @ pull.transpose(0, 2, 1)
            flat = (near[:, :, None] * (jacobian * np.sqrt(weights))[:, None]).reshape(
                n, 6 * len(slices), -1
            )
            square = (own * (flat @ flat.transpose(0, 2, 1))).reshape(
                n, len(slices), 6, len(slices), 6
            )
            apart = slices - slices[:, None]
            below, above = np.nonzero((apart >= 0) & (apart < N_NODES))
            hessian[:, slices[below], apart[below, above]] += square[:, below, :, above].transpose(
                1, 0, 2, 3
            )
        return gradient - gradient.mean(axis=0), hessian

    def _add_square(
        self, square: np.ndarray, knots: Knots, jacobian: np.ndarray, parts: np.ndarray
    ) -> None:
        """Add the share of a slab to the upper triangle of ``H``."""
        active = np.where(knots.moving[:, None], parts.any(axis=1), False)
        active[~knots.moving, 0] = True
        volume, knot = np.nonzero(active)
        if not len(volume) or not jacobian.shape[2]:
            return
        whole = parts.sum(axis=2)
        weight = np.where(knots.moving[volume][:, None], parts[volume, :, knot], whole[volume])
        flat = (jacobian[volume] * weight[:, None]).reshape(6 * len(volume), -1)
        lower = blas.ssyrk(1.0, np.ascontiguousarray(flat).T, trans=1, lower=1)
        add_products(square, lower.T, self.P, volume, knots.row[volume, knot])

    def _with_all(self, knots: Knots, jacobian: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """Return how each knot answers to what all volumes do alike, ``Σ_j H_(im)(jn)``.

        Without what volumes in which the head moved answer to each other.
        """
        n, _, n_points = jacobian.shape
        n_knots = parts.shape[2]
        found = np.zeros((n, n_knots, 6, n_knots, 6))
        active = np.flatnonzero(parts.any(axis=(0, 1)))
        at_rest = ~knots.moving
        if not at_rest.any():
            return found
        coupled = np.where(at_rest[:, None] | at_rest, self.P, 0.0)
        for knot in active:
            alike = (jacobian * parts[:, None, :, knot]).reshape(n, -1)
            alike = (coupled @ alike).reshape(n, 6, n_points)
            for other in active:
                own = jacobian * parts[:, None, :, other]
                found[:, other, :, knot] = own @ alike.transpose(0, 2, 1)
        return found

    def by_blocks(self, slab: slice, pull: np.ndarray) -> np.ndarray:
        """Sum what points of a slab pull, (n, 6, V), over blocks of the brain: (B, n, 6)."""
        blocks = self.problem.block
        member = sparse.csr_array(
            (np.ones(pull.shape[2]), blocks[slab], np.arange(pull.shape[2] + 1)),
            shape=(pull.shape[2], blocks.max() + 1),
        )
        return (member.T @ pull.reshape(-1, pull.shape[2]).T).reshape(-1, *pull.shape[:2])

    def of_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``G`` of blocks of the brain (B, n, 6), and ``H`` (n, 6, 6) of each volume."""
        problem, n = self.problem, len(self.member.volumes)
        pulls, square = np.zeros((problem.block.max() + 1, n, 6)), np.zeros((n, 6, 6))
        own = np.diag(self.P)[:, None, None]
        for slab in problem.slabs:
            jacobian, weights = self.jacobian(slab), self.weights[slab]
            pull = jacobian * (self.residual[:, slab] * weights)[:, None]
            pulls += self.by_blocks(slab, pull)
            square += own * (jacobian * weights @ jacobian.transpose(0, 2, 1))
        return pulls - pulls.mean(axis=1, keepdims=True), square

    def discord(self) -> np.ndarray:
        """Variance of the pose of each volume by blocks of the brain over that by ``H``, (n,)."""
        pulls, square = self.of_blocks()
        square = square + DISCORD_DAMPING * np.trace(square, axis1=1, axis2=2)[
            :, None, None
        ] * np.eye(6)
        by_blocks = sandwich(np.linalg.solve(square, pulls.transpose(1, 2, 0)))
        return np.einsum("nkk,nkk->nk", by_blocks, 1 / np.linalg.inv(square)).mean(axis=1)


def _without_small(parts: np.ndarray) -> np.ndarray:
    """Leave out knots that have hardly a part at the points of a slab: of (n, V, M)."""
    return parts * (np.abs(parts).max(axis=1, keepdims=True, initial=0.0) > LEAST_PART)


def _from_upper(square: np.ndarray) -> np.ndarray:
    """Complete a symmetric matrix (k, 6, k, 6) whose lower triangle is zero."""
    whole = square.reshape(6 * len(square), -1).astype(float)
    whole = whole + whole.T - np.diag(np.diag(whole))
    return whole.reshape(square.shape)


def _centred(
    knots: Knots, of_knots: np.ndarray, square: np.ndarray, common: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take what all n volumes do alike out of normal equations.

    Parameters
    ----------
    knots : Knots
        Of the volumes.
    of_knots : (n, M, 6) array
        ``G`` of every knot.
    square : (k, 6, k, 6) array
        ``H`` of the unknowns.
    common : (n, M, 6, M, 6) array
        ``H`` of every knot, summed over the volumes on the right.

    Returns
    -------
    (k, 6) array
    (k, 6, k, 6) array
    """
    n = len(of_knots)
    gradient = knots.summed(of_knots - of_knots.mean(axis=0))
    answered = knots.summed(common) / n  # (k, 6, M, 6)
    total = common.sum(axis=0) / n**2
    total = (total + total.transpose(2, 3, 0, 1)) / 2
    once = np.einsum("kamb,lm->kalb", answered, knots.held, optimize=True)
    twice = np.einsum("km,manb,ln->kalb", knots.held, total, knots.held, optimize=True)
    return gradient, square - once - once.transpose(2, 3, 0, 1) + twice


def right_jacobians(twists: np.ndarray) -> np.ndarray:
    """Return ``A`` of twists (K, 6), ``δ = −A dξ``: (K, 6, 6)."""
    found = np.zeros((len(twists), 6, 6))
    found[:, :3, :3] = Rotation.from_rotvec(twists[:, 3:]).as_matrix().transpose(0, 2, 1)
    found[:, 3:, 3:] = right_jacobian(twists[:, 3:])
    return found

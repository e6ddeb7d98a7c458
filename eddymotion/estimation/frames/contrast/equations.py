# SPDX-License-Identifier: Apache-2.0
"""Least squares for the offset and the function together, and the error of the offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from eddymotion.estimation.frames.contrast.basis import Basis, Moments
from eddymotion.estimation.frames.contrast.clusters import (
    N_POINTS,
    ROWS_AT_A_TIME,
    Clusters,
    Width,
    centred,
)
from eddymotion.images.grid import transformed
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import BLOCK_MM, MIN_POINTS, blocks_of, head_scale, low_pass
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.robust import Cauchy, sandwich

THINNED_BY, LEAST_CLUSTERS = 4, 2_000
"""Before the last steps every n-th cluster is enough, but at least this many clusters are used."""

FIRST_STEPS, N_STEPS, LAST_STEPS = 4, 3, 8
"""Steps with one normal matrix: to compare starts, with a part of the clusters, and with all."""

COST_SLACK = 1e-3
"""Rise of the cost that is tolerated, since the weights change."""

EVERYWHERE = slice(None)

HALVES_FACTOR = 2.5
"""Ratio of standard errors to the scatter between halves of the brain: the errors in one head are
partly the same in all of its halves. Chosen on simulated heads and confirmed on others, see
docs/decisions/0019."""

OTHER_FACTOR = 2.0
"""Ratio of standard errors to the difference between the two equations."""

INSIDE_SHARE, INSIDE_FACTOR = 0.5, 0.7
"""Part of the way to the offset of points deep inside the brain, and ratio of standard errors to
the difference of both: see docs/decisions/0019."""

REJECTED = 0.025
"""Least probability of a second solution: one from a wrong far start is centimetres away."""

FLOOR_VOXELS = 0.01
"""Least standard error, in voxels per axis, however well the halves agree."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """The b=0 signal at one offset.

    Parameters
    ----------
    values : (R,) float32 array
        Contrasts within clusters, a row a point; zero where it is not usable.
    derivatives : (R, 6) float32 array
        Negative derivatives by the unknowns of the offset.
    usable : (R,) bool array
    """

    values: np.ndarray
    derivatives: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True, eq=False)
class _Normals:
    """The part of the normal matrix that does not depend on the offset, for given weights.

    Parameters
    ----------
    by_octant : (8, K, K) array
        ``XᵀWX`` of the functions, for each octant of the brain.
    ridge : (K,) array
    """

    by_octant: np.ndarray
    ridge: np.ndarray

    def factor(self, octants: np.ndarray | slice = EVERYWHERE) -> _Factor:
        """Factor the sum over octants, with the ridge."""
        if octants is EVERYWHERE:
            return self.everywhere
        return _Factor.of(self.by_octant[octants].sum(axis=0) + np.diag(self.ridge))

    @cached_property
    def everywhere(self) -> _Factor:
        """Factor of the sum over all octants, which each step needs."""
        return _Factor.of(self.by_octant.sum(axis=0) + np.diag(self.ridge))


@dataclass(frozen=True, eq=False)
class _Factor:
    """Normal equations whose unknowns differ in size; those without rows stay at zero.

    Parameters
    ----------
    scale : (K,) array
        Sizes of the unknowns, by which the matrix was divided on both sides.
    lower : (K, K) array
        Its Cholesky factor.
    """

    scale: np.ndarray
    lower: np.ndarray

    @classmethod
    def of(cls, normal: np.ndarray) -> _Factor:
        scale = np.sqrt(np.diag(normal))
        scale[scale < 1e-12 * scale.max()] = np.inf
        scaled = normal / scale[:, None] / scale
        scaled[np.diag_indices_from(scaled)] += np.where(np.isinf(scale), 1.0, 1e-12)
        # transposed it has the order that LAPACK works in: no copy
        return cls(scale, scipy.linalg.cholesky(scaled.T, lower=True, overwrite_a=True))

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve for right sides (K, m)."""
        scale = self.scale[:, None]
        return scipy.linalg.cho_solve((self.lower, True), right / scale) / scale


NO_NORMALS = _Normals(np.empty((8, 0, 0)), np.empty(0))


@dataclass(frozen=True, eq=False)
class ContrastEquations:
    """The regression at one width, for any offset.

    Parameters
    ----------
    clusters : Clusters
    basis : Basis
    moments : Moments
    functions : (R, K) float32 array
        Contrasts of the basis, a row a point.
    splines : sequence of n Spline
        The b=0 volumes, smoothed.
    b0_motion : Motion
        Theirs.
    tolerance : float
        Step (mm) at which a solution ends.
    """

    clusters: Clusters
    basis: Basis
    moments: Moments
    functions: np.ndarray
    splines: Sequence[Spline]
    b0_motion: Motion
    tolerance: float

    @classmethod
    def at(
        cls,
        clusters: Clusters,
        width: Width,
        volumes: np.ndarray,
        motion: Motion,
        b0_motion: Motion,
    ) -> ContrastEquations:
        """Read the volumes at the points and form the functions; others as above."""
        every = -(-len(volumes) // width.n_volumes)
        moments = clusters.moments(
            volumes[::every],
            motion.select(slice(None, None, every)),
            with_gradients=width.is_finest,
        )
        basis = Basis.over(moments, width.place_order)
        dwi = clusters.dwi
        return cls(
            clusters,
            basis,
            moments,
            clusters.functions(basis, moments),
            [
                Spline.of(low_pass(dwi.volume_with_missing(v), clusters.fwhm))
                for v in dwi.gradients.b0s
            ],
            b0_motion,
            width.tolerance * float(clusters.fwhm.min()),
        )

    def thinned(self) -> ContrastEquations:
        """Return the equations of a part of the clusters, for the way there."""
        every = min(THINNED_BY, len(self.clusters.points) // LEAST_CLUSTERS)
        return self if every < 2 else self.select(slice(None, None, every))

    def select(self, part: slice | np.ndarray) -> ContrastEquations:
        """Return the equations of some clusters."""
        rows = self.functions.reshape(-1, N_POINTS, self.functions.shape[1])[part]
        return replace(
            self,
            clusters=self.clusters.select(part),
            moments=self.moments.select(part),
            functions=rows.reshape(-1, rows.shape[-1]),
        )

    def solve(
        self,
        to_b0: np.ndarray,
        function: np.ndarray | None = None,
        *,
        n_normals: int,
        n_steps: int = N_STEPS,
    ) -> SolvedContrast | None:
        """Solve for the offset and the function together; None with too few points.

        Parameters
        ----------
        to_b0 : (4, 4) array
            Where to start.
        function : (K,) array, optional
            Its residuals give the first weights; all are equal if not given.
        n_normals : int
            How often the normal matrix of the functions is computed for new weights.
        n_steps : int
            Steps with each.
        """
        solved = None
        for _ in range(n_normals):
            seen = self.see(to_b0)
            if seen is None:
                return None
            start = np.zeros(self.functions.shape[1]) if function is None else function
            begun = SolvedContrast.at(self, to_b0, start, seen)
            if function is None:
                begun = replace(begun, weights=seen.usable.astype(np.float32))
            solved = self.go_on(replace(begun, normals=self.weigh(begun.weights)), n_steps)
            to_b0, function = solved.to_b0, solved.function
        return solved

    def go_on(self, solved: SolvedContrast, n_steps: int) -> SolvedContrast:
        """Iterate until the offset converges, with new weights but the same normal matrix.

        The matrix affects the steps, but not where they end. If it no longer fits the weights, the
        cost rises, and a new one is needed.
        """
        for _ in range(n_steps):
            step = solved.step()
            to_b0 = solved.to_b0 @ exp_rigid(step[-6:], self.clusters.center)
            seen = self.see(to_b0)
            if seen is None:
                break
            further = SolvedContrast.at(
                self, to_b0, solved.function + step[:-6], seen, solved.normals
            )
            if further.cost > solved.cost + COST_SLACK:
                break
            solved = further
            if np.linalg.norm(step[-6:] * solved.in_mm) < self.tolerance:
                break
        return solved

    def see(self, to_b0: np.ndarray) -> _Seen | None:
        """Read the b=0 signal; None with too few points."""
        values, jacobian = self._read_b0(to_b0)
        inside = self.moments.known & np.isfinite(values).all(axis=1)
        if (N_POINTS - 1) * inside.sum() < MIN_POINTS + self.functions.shape[1] + 6:
            return None
        values = np.where(inside[:, None], values, 0.0)[..., None]
        jacobian = np.where(inside[:, None, None], jacobian, 0.0)
        return _Seen(
            centred(values).astype(np.float32)[:, 0],
            -centred(jacobian).astype(np.float32),
            np.repeat(inside, N_POINTS),
        )

    def weigh(self, weights: np.ndarray) -> _Normals:
        """Compute the normal matrix of the functions for some weights."""

        def normal(rows: slice) -> np.ndarray:
            found = np.zeros((self.functions.shape[1],) * 2)
            for first in range(rows.start, rows.stop, ROWS_AT_A_TIME):
                chunk = slice(first, min(first + ROWS_AT_A_TIME, rows.stop))
                half = self.functions[chunk] * np.sqrt(weights[chunk, None])
                found += half.T @ half
            return found

        clusters = self.clusters
        normals = np.array(
            parallel_map(normal, clusters.rows_of_octants, n_threads=clusters.n_threads)
        )
        sizes = np.einsum("rk,rk->k", self.functions, self.functions).astype(float)
        sizes = np.maximum(sizes, 1e-12 * sizes.max() + np.finfo(float).tiny)
        typical = (np.einsum("okk->k", normals) / sizes).mean()
        return _Normals(normals, self.basis.ridge() * sizes * typical)

    def predict(self, function: np.ndarray) -> np.ndarray:
        """Return the contrasts that a function (K,) predicts, (R,)."""
        wanted, clusters = function.astype(np.float32), self.clusters
        parts = parallel_map(
            lambda rows: self.functions[rows] @ wanted,
            clusters.rows_of_octants,
            n_threads=clusters.n_threads,
        )
        return np.concatenate(parts)

    def _read_b0(self, to_b0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean b=0 signal (C, N_POINTS), and its derivatives by the offset (C, N_POINTS, 6)."""
        clusters = self.clusters
        points = clusters.points.reshape(-1, 3)

        there = transformed(to_b0, points)  # fields are those of the b=0 frame

        def read(k: int) -> tuple[np.ndarray, np.ndarray]:
            mapping = replace(self.b0_motion.mapping(k).effective, slices=None)
            return mapping.sample_with_gradient(self.splines[k], there)

        n = len(self.splines)
        values, slopes = np.zeros(len(points)), np.zeros((len(points), 3))
        for one, other in parallel_map(read, range(n), n_threads=clusters.n_threads):
            values += one
            slopes += other
        shape = clusters.points.shape
        slopes = slopes @ to_b0[:3, :3]  # along the axes of the points' frame
        return values.reshape(shape[:2]) / n, clusters.by_offset(slopes.reshape(shape) / n)


@dataclass(frozen=True, eq=False)
class SolvedContrast:
    """An offset and a function, with the equations for their remaining errors.

    Parameters
    ----------
    equations : ContrastEquations
    to_b0 : (4, 4) array
        Diffusion-weighted frame → b=0 frame.
    function : (K,) array
        Coefficients of the functions.
    seen : _Seen
    residual, weights : (R,) float32 arrays
    normals : _Normals
    cost : float
        Mean logarithm of the misfit.
    """

    equations: ContrastEquations
    to_b0: np.ndarray
    function: np.ndarray
    seen: _Seen
    residual: np.ndarray
    weights: np.ndarray
    normals: _Normals
    cost: float

    @classmethod
    def at(
        cls,
        equations: ContrastEquations,
        to_b0: np.ndarray,
        function: np.ndarray,
        seen: _Seen,
        normals: _Normals = NO_NORMALS,
    ) -> SolvedContrast:
        """Compare the signal with its prediction."""
        residual = seen.values - equations.predict(function)
        squares = residual.astype(float) ** 2
        spread = Cauchy.of(squares[seen.usable])
        weights = np.where(seen.usable, spread.weights(squares), 0.0).astype(np.float32)
        cost = spread.cost(squares[seen.usable])
        return cls(equations, to_b0, function, seen, residual, weights, normals, cost)

    @property
    def clusters(self) -> Clusters:
        """The points at which they are solved."""
        return self.equations.clusters

    @property
    def in_mm(self) -> np.ndarray:
        """Millimetres for each unit of a twist, (6,)."""
        return np.array([1.0] * 3 + [self.clusters.reach] * 3)

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """``XᵀW[D, r]`` (8, K, 7) and ``DᵀW[D, r]`` (8, 6, 7) of each octant.

        With functions ``X``, derivatives ``D`` and residual ``r``.
        """
        columns = self.seen.derivatives, self.residual
        weighted = np.column_stack(columns) * self.weights[:, None]
        functions, derivatives = self.equations.functions, self.seen.derivatives

        def crossed(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            here = weighted[
                rows
            ].T  # in front: a product of few rows is faster than of few columns
            return (here @ functions[rows]).T, (here @ derivatives[rows]).T

        clusters = self.clusters
        found = parallel_map(crossed, clusters.rows_of_octants, n_threads=clusters.n_threads)
        of_functions, own = zip(*found, strict=True)
        return np.array(of_functions, float), np.array(own, float)

    def solve(
        self,
        of_function: np.ndarray,
        of_offset: np.ndarray,
        octants: np.ndarray | slice = EVERYWHERE,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve for right sides (K, m) and (6, m) of the equations of some octants.

        The function is eliminated, since its normal matrix stays the same for many steps.
        """
        crossed, own = (part[octants, :, :6].sum(axis=0) for part in self.sums)
        taken = self.normals.factor(octants).solve(np.hstack([crossed, of_function]))
        left = np.hstack([own, of_offset]) - crossed.T @ taken
        offset = _solve_scaled(left[:, :6], left[:, 6:])
        return taken[:, 6:] - taken[:, :6] @ offset, offset

    def step(self, octants: np.ndarray | slice = EVERYWHERE) -> np.ndarray:
        """Return the step of function and offset by some octants, (K + 6,)."""
        of_function, of_offset = (part[octants, :, 6:].sum(axis=0) for part in self.sums)
        held = (self.normals.ridge * self.function)[:, None]
        return np.concatenate(self.solve(of_function - held, of_offset, octants))[:, 0]

    def with_own_normals(self) -> SolvedContrast:
        """Return the same with the normal matrix of its weights: halves have no other guard."""
        return replace(self, normals=self.equations.weigh(self.weights))

    def covariance(self) -> np.ndarray:
        """Covariance of the offset's error, (6, 6): see the module."""
        clusters = self.clusters
        voxel = float(np.cbrt(np.prod(clusters.dwi.voxel_sizes)))
        in_mm = self.in_mm
        halves = self.of_halves() * in_mm
        by_axis = (halves**2).mean(axis=0)
        by_axis = (by_axis + by_axis.mean()) / 2  # six determine a variance poorly
        other = self.of_predicted_gradient() * in_mm
        variances = HALVES_FACTOR**2 * by_axis + (OTHER_FACTOR * other) ** 2
        variances += (FLOOR_VOXELS * voxel) ** 2
        return np.diag(variances / in_mm**2) + self.sampling()

    def doubt(self, rival: SolvedContrast) -> np.ndarray:
        """Return what another solution, which may be right, adds to the covariance of the offset.

        ``p d dᵀ``, with ``d`` the twist to the rival and ``p`` its probability: that of Student's
        t for how much better this solution is in the octants of the brain, with an error that is
        widened as that of halves is. A rival that they reject adds nothing.
        """
        both = self.seen.usable & rival.seen.usable
        gains = rival.misfits - self.misfits
        octants = [gains[rows][both[rows]] for rows in self.clusters.rows_of_octants]
        gain = np.array([one.mean() for one in octants if len(one)])
        error = HALVES_FACTOR * gain.std() / np.sqrt(max(len(gain) - 1, 1))
        t = gain.mean() / max(error, np.finfo(float).tiny)
        share = scipy.special.stdtr(max(len(gain) - 1, 1), -t)
        twist = log_rigid(np.linalg.inv(self.to_b0) @ rival.to_b0, self.clusters.center)
        return np.outer(twist, twist) * (share if share > REJECTED else 0.0)

    @property
    def misfits(self) -> np.ndarray:
        """What each row adds to the cost, (R,)."""
        squares = self.residual.astype(float) ** 2
        return np.log(squares + Cauchy.of(squares[self.seen.usable]).square)

    def of_halves(self) -> np.ndarray:
        """Offsets of six halves of the brain from that of the whole, (6, 6) twists."""
        found = []
        for axis in range(3):
            for side in (0, 1):
                octants = np.flatnonzero((np.arange(8) >> axis & 1) == side)
                found.append(self.step(octants)[-6:])
        return np.array(found) - self.step()[-6:]

    def offset_of_deep_points(self) -> np.ndarray:
        """Offset of the points deep inside the brain from that of all, (6,) twist.

        Zero where too few are left.
        """
        inside = self.equations.select(self.clusters.are_deep)
        found = inside.solve(self.to_b0, self.function, n_normals=1, n_steps=LAST_STEPS)
        if found is None:
            return np.zeros(6)
        return log_rigid(np.linalg.inv(self.to_b0) @ found.to_b0, self.clusters.center)

    def of_predicted_gradient(self) -> np.ndarray:
        """One step to where the residual is orthogonal to the predicted gradient, (6,) twist."""
        clusters, equations = self.clusters, self.equations
        slopes = equations.basis.slopes(equations.moments, clusters.place, self.function)
        slopes = np.where(equations.moments.known[:, None, None], slopes, 0.0)
        weights, functions = self.weights[:, None], equations.functions
        weighted = -centred(clusters.by_offset(slopes)).astype(np.float32) * weights
        # instruments less what the functions can take up
        crossed = (weighted.T @ functions).T.astype(float)
        taken = self.normals.factor().solve(crossed)
        left = weighted - weights * (functions @ taken.astype(np.float32))
        hessian = (left.T @ self.seen.derivatives).astype(float)
        try:
            return np.linalg.solve(hessian, (left.T @ self.residual).astype(float))
        except np.linalg.LinAlgError:
            return np.full(6, np.inf)

    def sampling(self) -> np.ndarray:
        """Covariance by a sandwich over blocks of points, (6, 6): that of the noise."""
        clusters = self.clusters
        edge = BLOCK_MM * head_scale(clusters.dwi.mask, clusters.dwi.voxel_sizes)
        blocks = np.repeat(blocks_of(clusters.points[:, 0], edge), N_POINTS)
        order = np.argsort(blocks, kind="stable")
        starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        scores = self.weights * self.residual
        sums = (
            np.array([scores[rows] @ part[rows] for rows in np.split(order, starts[1:])], float).T
            for part in (self.equations.functions, self.seen.derivatives)
        )
        return sandwich(self.solve(*sums)[1])


def _solve_scaled(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve for an offset, whose unknowns differ in size: right sides (6, m)."""
    scale = np.sqrt(np.abs(np.diag(normal)))[:, None]
    return np.linalg.solve(normal / (scale * scale.T), right / scale) / scale

# SPDX-License-Identifier: Apache-2.0
"""The offset between b=0 and diffusion-weighted frames, from the images.

The contrasts differ, but what a voxel is made of determines both. In a voxel let ``m`` be the mean
of a diffusion-weighted shell and ``s`` its standard deviation over directions; then the b=0 signal
is a smooth function of both, which the data themselves teach. It is not the same function
everywhere: coils see some places better, tissues differ, a cavity is as dark as fluid where there
is diffusion weighting. With ``h`` hat functions and ``p`` the monomials of the place up to third
order, at points ``x`` of the diffusion-weighted frame and with ``A`` the offset sought, ::

    b₀(A x) ≈ Σ β_jk h_j(m) h_k(s) + Σ γ_jl h_j(m) p_l(x) + Σ δ_kl h_k(s) p_l(x)

is solved for the function and, by Gauss-Newton, for ``A`` together, so that the function cannot
take up a misplacement (variable projection). What keeps it unbiased:

- *A function that changes with the place.* With linear terms only, the offset was off by 0.1 to
  3 mm on heads of other physics, and each half of a brain gave another one.
- *Points off the grid*, and ``m`` and ``s`` formed from the volumes at these very points: a mean
  image on a grid would lock ``A`` to its interpolation pattern.
- *Contrasts within clusters of points* instead of a band-pass: from each of four neighbouring
  points their mean is subtracted, on both sides. What is smooth in space drops out, and no image
  of any basis function is ever formed.
- *Evenly spaced knots*: between knots at quantiles the function is too stiff just where fluid
  begins, which displaced it by several tenths of a millimetre.

The noise of the images tells the offset to some hundredths of a millimetre. What a voxel holds
besides ``m`` and ``s`` is the larger error, and alike over wide regions, so that no resampling of
points shows it. Two things do, and make up the covariance:

- *Halves.* Left, right, front, back, top and bottom of the brain each have an offset of their own.
- *Another equation.* Gauss-Newton asks that the residual be orthogonal to the gradient of the b=0
  image; it should be so to the gradient of its prediction as well, which knows only structure that
  both contrasts share. Where one of them has structure of its own the two equations part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from eddymotion.data.series import DWI
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import (
    BLOCK_MM,
    BRAIN_SIZE_MM,
    FWHM_TO_SIGMA,
    MIN_POINTS,
    blocks_of,
    fine_widths,
    head_scale,
    jittered_points,
    low_pass,
)
from eddymotion.machine.parallel import parallel_iterate, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid

N_KNOTS, N_SPREAD_KNOTS = 10, 8
"""Hat functions of the mean and of the standard deviation."""

KNOT_RANGE = (0.01, 0.99)
"""Quantiles of a feature between which the knots are spaced evenly."""

N_POINTS = 4
"""Points of a cluster."""

MIN_VOLUMES_FOR_SPREAD = 6
"""With fewer volumes the standard deviation over directions is mostly noise."""

MAX_ITERATIONS = 12

RIDGE, PLACE_RIDGE = 1e-5, 1e-3
"""On ``β``, relative to the mean of the normal matrix' diagonal: hats that no point reaches; and
on ``γ`` and ``δ``, which follow the data where there is enough of it."""

VOLUMES_AT_A_TIME = 16
ROWS_AT_A_TIME = 2048
ROBUST_ITERATIONS = (5, 2)
"""Regressions with new weights at the first and at each later step."""

LEAST_WEIGHT = 1e-9
"""Of a row that has a say: it may come back."""

HALVES_FACTOR = 3.0
"""Standard errors over the scatter between halves of the brain: what differs from head to head is
in part alike in all halves of one. Set on simulated heads; others confirmed it, see
docs/decisions/0018."""

OTHER_FACTOR = 2.0
"""Standard errors over what the other equation differs by."""

FLOOR_VOXELS = 0.02
"""Standard error, in voxels an axis, below which no agreement between halves leads."""


@dataclass(frozen=True)
class _Width:
    """A step from coarse to fine.

    Parameters
    ----------
    fwhm : float
        Of the smoothing of each volume, voxels; the points of a cluster spread in proportion.
    n_clusters : int
        Clusters of points; fewer in a small head, so that there is no more than a point a voxel.
    place_order : int
        Order of the polynomials of the place.
    n_volumes : int
        At most so many volumes give mean and standard deviation.
    tolerance : float
        Step, relative to `fwhm`, at which it ends.
    """

    fwhm: float
    n_clusters: int
    place_order: int
    n_volumes: int
    tolerance: float

    @property
    def neighbours(self) -> float:
        return 3 * self.fwhm


COARSE = (
    _Width(4.0, 3_000, place_order=2, n_volumes=24, tolerance=0.01),
    _Width(2.0, 5_000, place_order=2, n_volumes=24, tolerance=0.01),
)
FINE = _Width(1.0, 10_000, place_order=3, n_volumes=1000, tolerance=0.002)


def offset_from_images(
    dwi: DWI,
    b0_matrices: np.ndarray,
    volumes: np.ndarray,
    motion: Motion,
    start: np.ndarray,
    *,
    seed: int = 0,
    n_threads: int = 1,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the frame offset at which the diffusion-weighted signal explains the b=0 signal best.

    Parameters
    ----------
    dwi : DWI
    b0_matrices : (n, 4, 4) array
        Poses of the b=0 volumes, in their frame.
    volumes : (k,) index array
        Diffusion-weighted volumes of like b-value.
    motion : Motion
        Theirs, in their frame.
    start : (4, 4) array
        b=0 frame → frame of the diffusion-weighted volumes.
    seed : int
    n_threads : int

    Returns
    -------
    offset : (4, 4) array
        b=0 frame → frame of the diffusion-weighted volumes.
    covariance : (6, 6) array
        Of the error ``δ`` in ``A = Â exp(δ)``, ``A`` the inverse of the offset, translation (mm)
        and rotation (rad) about the centre of the brain.

    None where too little of the head lies inside the volumes.
    """
    random = np.random.default_rng(seed)
    series = (dwi, volumes, motion, b0_matrices)
    at_start = np.linalg.inv(start)
    to_b0 = at_start
    for width in COARSE:
        equations = _Equations.at_width(width, *series, random, n_threads)
        solved = equations.solve(to_b0)
        if solved is None:
            return None
        to_b0 = solved.to_b0
    fine = _Equations.at_width(FINE, *series, random, n_threads)
    # what is coarse reaches far, but is wrong on some heads
    begun = [one for pose in (at_start, to_b0) if (one := fine.step(pose)) is not None]
    if not begun:
        return None
    solved = fine.solve_on(min(begun, key=lambda one: one.fit.cost))
    return np.linalg.inv(solved.to_b0), solved.covariance()


@dataclass(frozen=True, eq=False)
class _Moments:
    """Mean and standard deviation over volumes at the points of clusters.

    Parameters
    ----------
    mean, spread : (C, N_POINTS) array
        NaN outside; no `spread` where the volumes are too few.
    mean_gradient, spread_gradient : (C, N_POINTS, 3) array, optional
        Per mm, along the axes of the head's frame.
    """

    mean: np.ndarray
    spread: np.ndarray | None
    mean_gradient: np.ndarray | None = None
    spread_gradient: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """Whether all points of a cluster lie inside all volumes, (C,)."""
        return np.isfinite(self.mean).all(axis=1)


@dataclass(frozen=True, eq=False)
class _Basis:
    """Functions of mean, standard deviation and place.

    Parameters
    ----------
    by_mean : _Hats
    by_spread : _Hats, optional
    place_order : int
        Of the monomials of the place that single hats are multiplied by.
    """

    by_mean: _Hats
    by_spread: _Hats | None
    place_order: int

    @classmethod
    def over(cls, moments: _Moments, place_order: int) -> _Basis:
        """Choose the knots by what the moments are."""
        spread = moments.spread
        return cls(
            _Hats.over(moments.mean, N_KNOTS),
            None if spread is None else _Hats.over(spread, N_SPREAD_KNOTS),
            place_order,
        )

    def at(self, mean: np.ndarray, spread: np.ndarray | None, place: np.ndarray) -> np.ndarray:
        """Return all functions at points (…): (…, K) float32."""
        other = None
        if self.by_spread is not None and spread is not None:
            other = self.by_spread.at(spread)
        return self._columns(self.by_mean.at(mean), other, place)

    def slopes(
        self, moments: _Moments, place: np.ndarray, coefficients: np.ndarray, chunk: slice
    ) -> np.ndarray:
        """Spatial gradient of what the functions predict, place held: (chunk, N_POINTS, 3)."""
        assert moments.mean_gradient is not None
        mean, where = moments.mean[chunk], place[chunk]
        hats, other = self.by_mean.at(mean), None
        if self.by_spread is not None and moments.spread is not None:
            other = self.by_spread.at(moments.spread[chunk])
        along_mean = self._columns(self.by_mean.slopes_at(mean), other, where, spread=False)
        gradient = (along_mean @ coefficients)[..., None] * moments.mean_gradient[chunk]
        if other is not None and self.by_spread is not None and moments.spread is not None:
            assert moments.spread_gradient is not None
            slopes = self.by_spread.slopes_at(moments.spread[chunk])
            along_spread = self._columns(hats, slopes, where, mean=False)
            gradient += (along_spread @ coefficients)[..., None] * moments.spread_gradient[chunk]
        return gradient

    def ridge(self) -> np.ndarray:
        """Relative ridge of each function, (K,)."""
        n_both = N_KNOTS * (1 if self.by_spread is None else N_SPREAD_KNOTS)
        n_single = N_KNOTS + (0 if self.by_spread is None else N_SPREAD_KNOTS)
        n_place = n_single * len(_exponents(self.place_order))
        return np.concatenate([np.full(n_both, RIDGE), np.full(n_place, PLACE_RIDGE + RIDGE)])

    def _columns(
        self,
        by_mean: np.ndarray,
        by_spread: np.ndarray | None,
        place: np.ndarray,
        *,
        mean: bool = True,
        spread: bool = True,
    ) -> np.ndarray:
        """Put the functions together; those of `mean` or of `spread` alone are zero unless asked.

        A product rule then needs no more than hats or their slopes in either place.
        """
        shape = by_mean.shape[:-1]
        powers = np.stack(
            [np.prod(place**power, axis=-1) for power in _exponents(self.place_order)], axis=-1
        )
        parts = [by_mean]
        if by_spread is not None:
            parts = [(by_mean[..., :, None] * by_spread[..., None, :]).reshape(*shape, -1)]
        for single, wanted in ((by_mean, mean), (by_spread, spread)):
            if single is None:
                continue
            both = (single[..., :, None] * powers[..., None, :]).reshape(*shape, -1)
            parts.append(both if wanted else np.zeros_like(both))
        return np.concatenate(parts, axis=-1).astype(np.float32)


def _exponents(order: int) -> np.ndarray:
    """Exponents of x, y, z in the monomials of orders 1 to `order`, (M, 3)."""
    every = np.indices([order + 1] * 3).reshape(3, -1).T
    total = every.sum(axis=1)
    return every[(total > 0) & (total <= order)]


@dataclass(frozen=True, eq=False)
class _Clusters:
    """Points of the brain that are neighbours, at one width.

    Parameters
    ----------
    dwi : DWI
    fwhm : (3,) array
        Of the smoothing of each volume, mm along the image axes.
    points : (C, N_POINTS, 3) array
        In the diffusion-weighted frame.
    n_threads : int
    """

    dwi: DWI
    fwhm: np.ndarray
    points: np.ndarray
    n_threads: int

    @classmethod
    def draw(
        cls, dwi: DWI, width: _Width, random: np.random.Generator, n_threads: int
    ) -> _Clusters:
        """Draw clusters from the brain and its edge."""
        voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
        mask = ndimage.binary_dilation(dwi.mask)
        n_clusters = min(width.n_clusters, int(mask.sum()) // N_POINTS)
        middles = jittered_points(mask, dwi.affine, n_clusters, random)
        middles = middles[np.lexsort(middles.T)]
        spread = width.neighbours * voxel * FWHM_TO_SIGMA
        away = random.normal(scale=spread, size=(len(middles), N_POINTS - 1, 3))
        points = np.concatenate([middles[:, None], middles[:, None] + away], axis=1)
        fwhm = np.maximum(width.fwhm * voxel, fine_widths(dwi.voxel_sizes))
        return cls(dwi, fwhm, points, n_threads)

    def moments(
        self, volumes: np.ndarray, motion: Motion, *, with_gradients: bool = False
    ) -> _Moments:
        """Read mean and standard deviation over the volumes at all points."""
        points = self.points.reshape(-1, 3)

        def read(k: int) -> tuple[np.ndarray, np.ndarray | None]:
            spline = Spline.of(low_pass(self.dwi.volume_with_missing(volumes[k]), self.fwhm))
            mapping = motion.mapping(k)
            if not with_gradients:
                return mapping.sample(spline, points), None
            return mapping.sample_with_gradient(spline, points)

        n = len(volumes)
        total, squares = np.zeros(len(points)), np.zeros(len(points))
        slope, mixed = np.zeros((2, len(points), 3))
        for first in range(0, n, VOLUMES_AT_A_TIME):
            block = range(first, min(first + VOLUMES_AT_A_TIME, n))
            for values, slopes in parallel_map(read, block, n_threads=self.n_threads):
                total += values
                squares += values.astype(float) ** 2
                if slopes is not None:
                    slope += slopes
                    mixed += values[:, None].astype(float) * slopes
        mean = total / n
        spread = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
        shape = self.points.shape
        found = _Moments(
            mean.reshape(shape[:2]),
            spread.reshape(shape[:2]) if n >= MIN_VOLUMES_FOR_SPREAD else None,
        )
        if not with_gradients:
            return found
        along_mean = slope / n
        along_spread = mixed / n - mean[:, None] * along_mean
        with np.errstate(invalid="ignore", divide="ignore"):
            along_spread = np.where(spread[:, None] > 0, along_spread / spread[:, None], 0.0)
        return replace(
            found,
            mean_gradient=along_mean.reshape(shape),
            spread_gradient=along_spread.reshape(shape),
        )

    @property
    def center(self) -> np.ndarray:
        """Centre of the brain, RAS+ mm."""
        return self.dwi.brain_center

    @property
    def reach(self) -> float:
        """Distance from the centre (mm) in which positions and rotations are measured."""
        return 0.5 * BRAIN_SIZE_MM * head_scale(self.dwi.mask, self.dwi.voxel_sizes)

    @property
    def place(self) -> np.ndarray:
        """Places of the points from the centre, in units of the reach, (C, N_POINTS, 3)."""
        return (self.points - self.center) / self.reach

    def chunks(self) -> list[slice]:
        """Return slices of clusters that fit into a cache: alike for any number of threads."""
        size = ROWS_AT_A_TIME // N_POINTS
        return [slice(k, k + size) for k in range(0, len(self.points), size)]

    def columns(self, basis: _Basis, moments: _Moments) -> np.ndarray:
        """Contrasts of all functions within clusters, zero outside; room for six more columns."""
        place = self.place
        known = moments.known[:, None]
        found = np.zeros((known.size * N_POINTS, len(basis.ridge()) + 6), np.float32)

        def fill(chunk: slice) -> None:
            mean = np.where(known[chunk], moments.mean[chunk], 0.0)
            spread = moments.spread
            if spread is not None:
                spread = np.where(known[chunk], spread[chunk], 0.0)
            contrasts = _centred(basis.at(mean, spread, place[chunk]))
            contrasts[~np.repeat(known[chunk, 0], N_POINTS)] = 0.0
            found[N_POINTS * chunk.start : N_POINTS * chunk.stop, :-6] = contrasts

        parallel_map(fill, self.chunks(), n_threads=self.n_threads)
        return found

    def by_offset(self, slopes: np.ndarray) -> np.ndarray:
        """Turn gradients (C, N_POINTS, 3) into derivatives by a twist, (C, N_POINTS, 6)."""
        turning = np.cross(self.points - self.center, slopes)
        return np.concatenate([slopes, turning], axis=-1)


@dataclass(frozen=True, eq=False)
class _Equations:
    """The regression at one width, for any offset.

    Parameters
    ----------
    clusters : _Clusters
    basis : _Basis
    moments : _Moments
    columns : (R, K + 6) float32 array
        Contrasts of the basis, a row a point; then the derivatives by the offset, which each step
        fills in anew.
    splines : sequence of n Spline
        The b=0 volumes, smoothed.
    b0_matrices : (n, 4, 4) array
        Their poses.
    tolerance : float
        Step (mm) at which a solution ends.
    """

    clusters: _Clusters
    basis: _Basis
    moments: _Moments
    columns: np.ndarray
    splines: Sequence[Spline]
    b0_matrices: np.ndarray
    tolerance: float

    @classmethod
    def at_width(
        cls,
        width: _Width,
        dwi: DWI,
        volumes: np.ndarray,
        motion: Motion,
        b0_matrices: np.ndarray,
        random: np.random.Generator,
        n_threads: int,
    ) -> _Equations:
        """Draw points, read the volumes there and form the functions; others as above."""
        clusters = _Clusters.draw(dwi, width, random, n_threads)
        every = -(-len(volumes) // width.n_volumes)
        moments = clusters.moments(
            volumes[::every],
            motion.select(slice(None, None, every)),
            with_gradients=width is FINE,
        )
        basis = _Basis.over(moments, width.place_order)
        return cls(
            clusters,
            basis,
            moments,
            clusters.columns(basis, moments),
            [
                Spline.of(low_pass(dwi.volume_with_missing(v), clusters.fwhm))
                for v in dwi.gradients.b0s
            ],
            b0_matrices,
            width.tolerance * float(clusters.fwhm.min()),
        )

    def solve(self, to_b0: np.ndarray) -> _Solved | None:
        """Solve for the offset and the function together; None with too few points."""
        begun = self.step(to_b0)
        return None if begun is None else self.solve_on(begun)

    def solve_on(self, solved: _Solved) -> _Solved:
        """Go on until the steps are small, by one at least."""
        for _ in range(MAX_ITERATIONS - 1):
            further = self.step(solved.to_b0, solved.fit.weights)
            if further is None:
                break
            solved = further
            if solved.length < self.tolerance:
                break
        return solved

    def step(self, to_b0: np.ndarray, weights: np.ndarray | None = None) -> _Solved | None:
        """Take a step, from the weights of the one before; None with too few points."""
        values, jacobian = self._read_b0(to_b0)
        inside = self.moments.known & np.isfinite(values).all(axis=1)
        ridge = np.append(self.basis.ridge(), np.zeros(6))
        if (N_POINTS - 1) * inside.sum() < MIN_POINTS + len(ridge):
            return None
        usable = np.repeat(inside, N_POINTS)
        right = np.where(usable, _centred(np.nan_to_num(values)[..., None])[:, 0], 0.0)
        slopes = np.where(usable[:, None], _centred(np.nan_to_num(jacobian)), 0.0)
        self.columns[:, -6:] = -slopes
        fit = _regress(
            right,
            self.columns,
            np.where(usable, 1.0 if weights is None else np.maximum(weights, LEAST_WEIGHT), 0.0),
            ridge,
            n_iterations=ROBUST_ITERATIONS[0 if weights is None else 1],
            n_threads=self.clusters.n_threads,
        )
        moved = to_b0 @ exp_rigid(fit.coefficients[-6:], self.clusters.center)
        return _Solved(self, moved, right, fit)

    def _read_b0(self, to_b0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean b=0 signal (C, N_POINTS), and its derivatives by the offset (C, N_POINTS, 6)."""
        clusters = self.clusters
        points = clusters.points.reshape(-1, 3)

        def read(k: int) -> tuple[np.ndarray, np.ndarray]:
            return self.splines[k].sample_with_gradient(points, self.b0_matrices[k] @ to_b0)

        n = len(self.splines)
        values, slopes = np.zeros(len(points)), np.zeros((len(points), 3))
        for one, other in parallel_map(read, range(n), n_threads=clusters.n_threads):
            values += one
            slopes += other
        shape = clusters.points.shape
        return values.reshape(shape[:2]) / n, clusters.by_offset(slopes.reshape(shape) / n)


@dataclass(frozen=True, eq=False)
class _Solved:
    """An offset with the equations that it solves.

    Parameters
    ----------
    equations : _Equations
    to_b0 : (4, 4) array
        Diffusion-weighted frame → b=0 frame, after the step.
    values : (R,) array
        Contrasts of the b=0 signal.
    fit : _Fit
        The last regression.
    """

    equations: _Equations
    to_b0: np.ndarray
    values: np.ndarray
    fit: _Fit

    @property
    def clusters(self) -> _Clusters:
        return self.equations.clusters

    @property
    def columns(self) -> np.ndarray:
        """Functions and derivatives by the offset; of the last step that was taken at all."""
        return self.equations.columns

    @property
    def length(self) -> float:
        """Length of the step, mm."""
        step = self.fit.coefficients[-6:]
        return float(np.linalg.norm(step[:3]) + self.clusters.reach * np.linalg.norm(step[3:]))

    def covariance(self) -> np.ndarray:
        """Covariance of the offset's error, (6, 6): see the module."""
        clusters = self.clusters
        voxel = float(np.cbrt(np.prod(clusters.dwi.voxel_sizes)))
        in_mm = np.array([1.0] * 3 + [clusters.reach] * 3)
        halves = self.of_halves() * in_mm
        by_axis = (halves**2).mean(axis=0)
        by_axis = (by_axis + by_axis.mean()) / 2  # six tell a variance poorly
        other = self.of_predicted_gradient() * in_mm
        variances = HALVES_FACTOR**2 * by_axis + (OTHER_FACTOR * other) ** 2
        variances += (FLOOR_VOXELS * voxel) ** 2
        return np.diag(variances / in_mm**2) + self.sampling()

    def of_halves(self) -> np.ndarray:
        """Offsets of six halves of the brain from that of the whole, (6, 6) twists."""
        middles = self.clusters.points[:, 0] - self.clusters.center
        above = middles > np.median(middles, axis=0)
        octants = np.repeat(above @ [1, 2, 4], N_POINTS)
        n = self.columns.shape[1]
        normals, rights = np.zeros((8, n, n)), np.zeros((8, n))
        for octant in range(8):
            rows = np.flatnonzero((octants == octant) & (self.fit.weights > 0))
            normals[octant], rights[octant] = _normal_equations(
                self.values[rows], self.columns[rows], self.fit.weights[rows],
                self.clusters.n_threads,
            )  # fmt: skip
        ridge = self.fit.ridge
        found = []
        for axis in range(3):
            for side in (0, 1):
                which = (np.arange(8) >> axis & 1) == side
                normal = normals[which].sum(axis=0) + np.diag(ridge)
                found.append(_solve_scaled(normal, rights[which].sum(axis=0))[-6:])
        return np.array(found) - self.fit.coefficients[-6:]

    def of_predicted_gradient(self) -> np.ndarray:
        """One step to where the residual is orthogonal to the predicted gradient, (6,) twist."""
        clusters, fit = self.clusters, self.fit
        coefficients = fit.coefficients[:-6]
        basis, moments = self.equations.basis, self.equations.moments
        place, known = clusters.place, moments.known

        def predicted(chunk: slice) -> np.ndarray:
            slopes = basis.slopes(moments, place, coefficients, chunk)
            return np.where(known[chunk, None, None], slopes, 0.0)

        slopes = np.concatenate(
            parallel_map(predicted, clusters.chunks(), n_threads=clusters.n_threads)
        )
        instrument = -_centred(clusters.by_offset(slopes))
        weighted = instrument * fit.weights[:, None]
        functions = self.columns[:, :-6]
        normal = fit.normal[:-6, :-6]
        # instruments less what the functions can take up
        crossed = functions.T @ weighted.astype(np.float32)
        taken = _solve_scaled(normal, crossed.astype(float))
        left = weighted - fit.weights[:, None] * (functions @ taken.astype(np.float32))
        hessian = left.T @ self.columns[:, -6:]
        try:
            return np.linalg.solve(hessian, left.T @ fit.residual)
        except np.linalg.LinAlgError:
            return np.full(6, np.inf)

    def sampling(self) -> np.ndarray:
        """Covariance by a sandwich over blocks of points, (6, 6): that of the noise."""
        clusters = self.clusters
        edge = BLOCK_MM * head_scale(clusters.dwi.mask, clusters.dwi.voxel_sizes)
        blocks = np.repeat(blocks_of(clusters.points[:, 0], edge), N_POINTS)
        return self.fit.covariance(self.columns, blocks)[-6:, -6:]


def _centred(clusters: np.ndarray) -> np.ndarray:
    """Subtract from each point the mean of its cluster: (C, N_POINTS, k) → (C · N_POINTS, k)."""
    centred = clusters - clusters.mean(axis=1, keepdims=True)
    return centred.reshape(-1, clusters.shape[-1])


@dataclass(frozen=True)
class _Hats:
    """Evenly spaced linear B-splines of a feature, constant beyond the ends."""

    low: float
    high: float
    n_knots: int

    @classmethod
    def over(cls, feature: np.ndarray, n_knots: int) -> _Hats:
        """Choose the ends by the values of a feature."""
        known = feature[np.isfinite(feature)]
        low, high = np.quantile(known, KNOT_RANGE) if len(known) else (0.0, 1.0)
        return cls(low, max(high, low + np.finfo(float).tiny), n_knots)

    def at(self, feature: np.ndarray) -> np.ndarray:
        """Return the functions at some values, (…, n_knots); NaN where they are."""
        last = self.n_knots - 1
        at = np.clip((feature - self.low) / (self.high - self.low) * last, 0, last)[..., None]
        return np.maximum(1 - np.abs(at - np.arange(self.n_knots)), 0.0)

    def slopes_at(self, feature: np.ndarray) -> np.ndarray:
        """Return their derivatives by the feature, (…, n_knots)."""
        per_unit = (self.n_knots - 1) / (self.high - self.low)
        at = ((feature - self.low) * per_unit)[..., None]
        away = at - np.arange(self.n_knots)
        rising = np.where(np.abs(away) < 1, -np.sign(away), 0.0)
        inside = (at > 0) & (at < self.n_knots - 1)
        return np.where(inside, rising * per_unit, 0.0)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A robust regression.

    Parameters
    ----------
    coefficients : (k,) array
    normal : (k, k) array
        Normal matrix, weighted, with its ridge.
    ridge : (k,) array
        What was added to its diagonal.
    residual, weights : (R,) array
    """

    coefficients: np.ndarray
    normal: np.ndarray
    ridge: np.ndarray
    residual: np.ndarray
    weights: np.ndarray

    @property
    def cost(self) -> float:
        """Mean logarithm of the misfit, of the rows that have a say."""
        squares = self.residual[self.weights > 0] ** 2
        return float(np.log(squares + np.median(squares) + np.finfo(float).tiny).mean())

    def covariance(self, columns: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Covariance of the coefficients by a sandwich over blocks of points, (k, k)."""
        order = np.argsort(blocks, kind="stable")
        starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        scores = (self.weights * self.residual).astype(columns.dtype)
        sums = [scores[rows] @ columns[rows] for rows in np.split(order, starts[1:])]
        parts = _solve_scaled(self.normal, np.array(sums, float).T)
        return parts @ parts.T


def _regress(
    values: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    relative_ridge: np.ndarray,
    *,
    n_iterations: int,
    n_threads: int = 1,
) -> _Fit:
    """Regress robustly, from given weights: Student-t with one degree of freedom.

    Rows of weight zero have no say and keep it.
    """
    usable = weights > 0
    sizes = np.array([column @ column for column in columns.T], float)
    sizes = np.maximum(sizes, 1e-12 * sizes.max() + np.finfo(float).tiny)
    for _ in range(n_iterations):
        normal, right = _normal_equations(values, columns, weights, n_threads)
        ridge = relative_ridge * sizes * (np.diag(normal) / sizes).mean()
        normal[np.diag_indices_from(normal)] += ridge
        coefficients = _solve_scaled(normal, right)
        in_single = coefficients[:-6].astype(columns.dtype)  # or all columns would be converted
        residual = values - columns[:, :-6] @ in_single - columns[:, -6:] @ coefficients[-6:]
        spread = np.median(residual[usable] ** 2) + np.finfo(float).tiny
        weights = np.where(usable, 2.0 / (1.0 + residual**2 / spread), 0.0)
    return _Fit(coefficients, normal, ridge, residual, weights)


def _solve_scaled(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve normal equations whose unknowns differ in size; those without rows stay at zero."""
    scale = np.sqrt(np.diag(normal))
    scale[scale < 1e-12 * scale.max()] = np.inf
    scaled = normal / np.outer(scale, scale)
    scaled[np.diag_indices_from(scaled)] += np.where(np.isinf(scale), 1.0, 1e-12)
    shape = (-1,) + (1,) * (right.ndim - 1)
    return np.linalg.solve(scaled, right / scale.reshape(shape)) / scale.reshape(shape)


def _normal_equations(
    values: np.ndarray, columns: np.ndarray, weights: np.ndarray, n_threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """``XᵀWX`` and ``XᵀWy``, summed over fixed chunks of rows: alike for any `n_threads`."""
    chunks = [slice(k, k + ROWS_AT_A_TIME) for k in range(0, len(values), ROWS_AT_A_TIME)]

    def partial(chunk: slice) -> tuple[np.ndarray, np.ndarray]:
        root = np.sqrt(weights[chunk]).astype(columns.dtype)
        half = columns[chunk] * root[:, None]
        return half.T @ half, half.T @ (values[chunk].astype(columns.dtype) * root)

    normal, right = np.zeros((columns.shape[1],) * 2), np.zeros(columns.shape[1])
    for a, b in parallel_iterate(partial, chunks, n_threads=n_threads):
        normal += a
        right += b
    return normal, right

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
from functools import cached_property
from itertools import pairwise

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from eddymotion.data.series import DWI
from eddymotion.images.grid import grid_indices
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import (
    BLOCK_MM,
    BRAIN_SIZE_MM,
    FWHM_TO_SIGMA,
    MIN_POINTS,
    blocks_of,
    crop,
    fine_widths,
    head_scale,
    jittered_points,
    low_pass,
)
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.robust import Cauchy, sandwich

N_KNOTS, N_SPREAD_KNOTS = 10, 8
"""Hat functions of the mean and of the standard deviation."""

KNOT_RANGE = (0.01, 0.99)
"""Quantiles of a feature between which the knots are spaced evenly."""

N_POINTS = 4
"""Points of a cluster."""

MIN_VOLUMES_FOR_SPREAD = 6
"""With fewer volumes the standard deviation over directions is mostly noise."""

RIDGE, PLACE_RIDGE = 1e-5, 1e-3
"""On ``β``, relative to the mean of the normal matrix' diagonal: hats that no point reaches; and
on ``γ`` and ``δ``, which follow the data where there is enough of it."""

VOLUMES_AT_A_TIME = 16
ROWS_AT_A_TIME = 2048

THINNED_BY, LEAST_CLUSTERS = 4, 2_000
"""On the way to the solution every so many-th cluster is enough, but no fewer clusters."""

FIRST_STEPS, N_STEPS, LAST_STEPS = 4, 3, 8
"""Steps with one normal matrix: to tell which start is better, with a part of the clusters, and
with all."""

N_NORMALS, LAST_NORMALS = 3, 2
"""How often the normal matrix is renewed, with a part of the clusters and with all."""

COST_SLACK = 1e-3
"""Rise of the cost that still counts as progress: the weights jitter."""

MARGIN_FWHM, MARGIN_VOXELS = 2.0, 3.0
"""What is kept of a volume around the points that are read: the reach of its filters."""

BOX_EVERY = 16
"""Every so many-th point tells what is read of a volume."""

EVERYWHERE = slice(None)

HALVES_FACTOR = 2.5
"""Standard errors over the scatter between halves of the brain: what differs from head to head is
in part alike in all halves of one. Set on simulated heads; others confirmed it, see
docs/decisions/0019."""

OTHER_FACTOR = 2.0
"""Standard errors over what the other equation differs by."""

FLOOR_VOXELS = 0.01
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
    others: Sequence[np.ndarray] = (),
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
    others : sequence of (4, 4) array
        Further starts, for the finest width alone.
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
        solved = equations.solve(to_b0, n_normals=N_NORMALS)
        if solved is None:
            return None
        to_b0 = solved.to_b0
    fine = _Equations.at_width(FINE, *series, random, n_threads)
    few = fine.thinned()
    # what is coarse reaches far, but is wrong on some heads
    poses = [at_start, to_b0, *map(np.linalg.inv, others)]
    starts = [few.solve(pose, n_normals=1, n_steps=FIRST_STEPS) for pose in poses]
    solved = min((one for one in starts if one is not None), key=_cost, default=None)
    if solved is not None:
        solved = few.solve(solved.to_b0, solved.function, n_normals=N_NORMALS)
    if solved is not None:
        solved = fine.solve(
            solved.to_b0, solved.function, n_normals=LAST_NORMALS, n_steps=LAST_STEPS
        )
    if solved is None:
        return None
    return np.linalg.inv(solved.to_b0), solved.with_own_normals().covariance()


def _cost(solved: _Solved) -> float:
    return solved.cost


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

    def select(self, clusters: slice) -> _Moments:
        """Return those of some clusters."""

        def part(of: np.ndarray | None) -> np.ndarray | None:
            return None if of is None else of[clusters]

        return _Moments(
            self.mean[clusters],
            part(self.spread),
            part(self.mean_gradient),
            part(self.spread_gradient),
        )


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
        powers = self._powers(place).astype(np.float32)
        hats = self.by_mean.at(mean).astype(np.float32)
        if self.by_spread is None or spread is None:
            return np.concatenate([hats, _products(hats, powers)], axis=-1)
        other = self.by_spread.at(spread).astype(np.float32)
        parts = _products(hats, other), _products(hats, powers), _products(other, powers)
        return np.concatenate(parts, axis=-1)

    def slopes(self, moments: _Moments, place: np.ndarray, function: np.ndarray) -> np.ndarray:
        """Spatial gradient of what a function (K,) predicts, place held: (C, N_POINTS, 3).

        ``Σ_j h_j′(m) (Σ_k β_jk h_k(s) + Σ_l γ_jl p_l) ∇m``, and the like for ``s``.
        """
        assert moments.mean_gradient is not None
        powers = self._powers(place)
        beta, gamma, delta = self._split(function)
        other = np.ones((*place.shape[:-1], 1))
        if self.by_spread is not None and moments.spread is not None:
            other = self.by_spread.at(moments.spread)
        along = self.by_mean.slopes_at(moments.mean) * (other @ beta.T + powers @ gamma.T)
        gradient = along.sum(axis=-1)[..., None] * moments.mean_gradient
        if self.by_spread is not None and moments.spread is not None:
            assert moments.spread_gradient is not None
            hats = self.by_mean.at(moments.mean)
            across = self.by_spread.slopes_at(moments.spread) * (hats @ beta + powers @ delta.T)
            gradient += across.sum(axis=-1)[..., None] * moments.spread_gradient
        return gradient

    def ridge(self) -> np.ndarray:
        """Relative ridge of each function, (K,)."""
        n_both, n_mean, n_spread = self._sizes
        return np.concatenate(
            [np.full(n_both, RIDGE), np.full(n_mean + n_spread, PLACE_RIDGE + RIDGE)]
        )

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Functions of both moments, of mean and place, and of standard deviation and place."""
        n_spread, n_powers = self._n_spread, len(_exponents(self.place_order))
        return N_KNOTS * max(n_spread, 1), N_KNOTS * n_powers, n_spread * n_powers

    @property
    def _n_spread(self) -> int:
        return 0 if self.by_spread is None else N_SPREAD_KNOTS

    def _split(self, function: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``β`` (J, K), ``γ`` (J, M) and ``δ`` (K, M) of a function; without spread K is one."""
        n_powers = len(_exponents(self.place_order))
        beta, gamma, delta = np.split(function, np.cumsum(self._sizes)[:2])
        return (
            beta.reshape(N_KNOTS, -1),
            gamma.reshape(N_KNOTS, n_powers),
            delta.reshape(self._n_spread, n_powers),
        )

    def _powers(self, place: np.ndarray) -> np.ndarray:
        """Return the monomials of places (…, 3), (…, M)."""
        powers = place[..., None, :] ** np.arange(self.place_order + 1)[:, None]
        i, j, k = _exponents(self.place_order).T
        return powers[..., i, 0] * powers[..., j, 1] * powers[..., k, 2]


def _products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each of one set of functions (…, J) times each of another (…, K): (…, J · K)."""
    return (first[..., :, None] * second[..., None, :]).reshape(*first.shape[:-1], -1)


def _exponents(order: int) -> np.ndarray:
    """Exponents of x, y, z in the monomials of orders 1 to `order`, (M, 3)."""
    every = grid_indices([order + 1] * 3)
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
    octants : (C,) int array
        Left or right, back or front, below or above: ascending.
    n_threads : int
    """

    dwi: DWI
    fwhm: np.ndarray
    points: np.ndarray
    octants: np.ndarray
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
        octants = (middles > np.median(middles, axis=0)) @ [1, 2, 4]
        order = np.argsort(octants, kind="stable")
        fwhm = np.maximum(width.fwhm * voxel, fine_widths(dwi.voxel_sizes))
        return cls(dwi, fwhm, points[order], octants[order], n_threads)

    def select(self, clusters: slice) -> _Clusters:
        """Return some of them."""
        return replace(self, points=self.points[clusters], octants=self.octants[clusters])

    @property
    def rows_of_octants(self) -> list[slice]:
        """Rows, a row a point, of each octant."""
        ends = N_POINTS * np.searchsorted(self.octants, np.arange(9))
        return [slice(*pair) for pair in pairwise(ends)]

    def shown(self, volume: int, matrix: np.ndarray) -> Spline:
        """Return a volume, smoothed, as far as the points reach in it."""
        image = self.dwi.volume_with_missing(volume)
        there = apply_affine(matrix, self.points.reshape(-1, 3)[::BOX_EVERY])
        margin = MARGIN_FWHM * self.fwhm + MARGIN_VOXELS * self.dwi.voxel_sizes
        return Spline.of(low_pass(crop(image, there, margin), self.fwhm))

    def moments(
        self, volumes: np.ndarray, motion: Motion, *, with_gradients: bool = False
    ) -> _Moments:
        """Read mean and standard deviation over the volumes at all points."""
        points = self.points.reshape(-1, 3)

        def read(k: int) -> tuple[np.ndarray, np.ndarray | None]:
            spline = self.shown(volumes[k], motion.matrices[k])
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

    def functions(self, basis: _Basis, moments: _Moments) -> np.ndarray:
        """Contrasts of all functions within clusters, (C · N_POINTS, K) float32; zero outside."""
        place, known = self.place, moments.known[:, None]
        found = np.empty((known.size * N_POINTS, len(basis.ridge())), np.float32)

        def fill(chunk: slice) -> None:
            mean = np.where(known[chunk], moments.mean[chunk], 0.0)
            spread = moments.spread
            if spread is not None:
                spread = np.where(known[chunk], spread[chunk], 0.0)
            contrasts = _centred(basis.at(mean, spread, place[chunk]))
            contrasts[~np.repeat(known[chunk, 0], N_POINTS)] = 0.0
            found[N_POINTS * chunk.start : N_POINTS * chunk.stop] = contrasts

        size = ROWS_AT_A_TIME // N_POINTS
        chunks = [slice(k, k + size) for k in range(0, len(place), size)]
        parallel_map(fill, chunks, n_threads=self.n_threads)
        return found

    def by_offset(self, slopes: np.ndarray) -> np.ndarray:
        """Turn gradients (C, N_POINTS, 3) into derivatives by a twist, (C, N_POINTS, 6)."""
        turning = np.cross(self.points - self.center, slopes)
        return np.concatenate([slopes, turning], axis=-1)


@dataclass(frozen=True, eq=False)
class _Seen:
    """The b=0 signal at one offset.

    Parameters
    ----------
    values : (R,) float32 array
        Contrasts within clusters, a row a point; zero where it is not usable.
    derivatives : (R, 6) float32 array
        What an unknown of the offset takes away from them.
    usable : (R,) bool array
    """

    values: np.ndarray
    derivatives: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True, eq=False)
class _Normals:
    """The part of the normal matrix that no offset changes, under some weights.

    Parameters
    ----------
    by_octant : (8, K, K) array
        ``XᵀWX`` of the functions, for each octant of the brain.
    ridge : (K,) array
    """

    by_octant: np.ndarray
    ridge: np.ndarray

    def normal(self, octants: np.ndarray | slice = EVERYWHERE) -> np.ndarray:
        """Sum over octants, with the ridge, (K, K)."""
        return self.by_octant[octants].sum(axis=0) + np.diag(self.ridge)


NO_NORMALS = _Normals(np.empty((8, 0, 0)), np.empty(0))


@dataclass(frozen=True, eq=False)
class _Equations:
    """The regression at one width, for any offset.

    Parameters
    ----------
    clusters : _Clusters
    basis : _Basis
    moments : _Moments
    functions : (R, K) float32 array
        Contrasts of the basis, a row a point.
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
    functions: np.ndarray
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
            clusters.functions(basis, moments),
            [
                Spline.of(low_pass(dwi.volume_with_missing(v), clusters.fwhm))
                for v in dwi.gradients.b0s
            ],
            b0_matrices,
            width.tolerance * float(clusters.fwhm.min()),
        )

    def thinned(self) -> _Equations:
        """Return the equations of a part of the clusters, for the way there."""
        every = min(THINNED_BY, len(self.clusters.points) // LEAST_CLUSTERS)
        if every < 2:
            return self
        part = slice(None, None, every)
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
    ) -> _Solved | None:
        """Solve for the offset and the function together; None with too few points.

        Parameters
        ----------
        to_b0 : (4, 4) array
            Where to start.
        function : (K,) array, optional
            Its residuals tell the first weights; all alike when not given.
        n_normals : int
            How often the normal matrix of the functions follows the weights.
        n_steps : int
            With each.
        """
        solved = None
        for _ in range(n_normals):
            seen = self.see(to_b0)
            if seen is None:
                return None
            start = np.zeros(self.functions.shape[1]) if function is None else function
            begun = _Solved.at(self, to_b0, start, seen)
            if function is None:
                begun = replace(begun, weights=seen.usable.astype(np.float32))
            solved = self.go_on(replace(begun, normals=self.weigh(begun.weights)), n_steps)
            to_b0, function = solved.to_b0, solved.function
        return solved

    def go_on(self, solved: _Solved, n_steps: int) -> _Solved:
        """Step until the offset rests: weights follow the residual, the normal matrix does not.

        It shapes the steps alone: where they end does not depend on it. Where it fits the weights
        no longer the cost rises, and another is needed.
        """
        for _ in range(n_steps):
            step = solved.step()
            to_b0 = solved.to_b0 @ exp_rigid(step[-6:], self.clusters.center)
            seen = self.see(to_b0)
            if seen is None:
                break
            further = _Solved.at(self, to_b0, solved.function + step[:-6], seen, solved.normals)
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
            _centred(values).astype(np.float32)[:, 0],
            -_centred(jacobian).astype(np.float32),
            np.repeat(inside, N_POINTS),
        )

    def weigh(self, weights: np.ndarray) -> _Normals:
        """Sum what the functions have in common under these weights."""

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
        return self.functions @ function.astype(np.float32)

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
    """An offset and a function, with the equations for what is still wrong with them.

    Parameters
    ----------
    equations : _Equations
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

    equations: _Equations
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
        equations: _Equations,
        to_b0: np.ndarray,
        function: np.ndarray,
        seen: _Seen,
        normals: _Normals = NO_NORMALS,
    ) -> _Solved:
        """Compare what is seen with what is predicted."""
        residual = seen.values - equations.predict(function)
        squares = residual.astype(float) ** 2
        spread = Cauchy.of(squares[seen.usable])
        weights = np.where(seen.usable, spread.weights(squares), 0.0).astype(np.float32)
        cost = spread.cost(squares[seen.usable])
        return cls(equations, to_b0, function, seen, residual, weights, normals, cost)

    @property
    def clusters(self) -> _Clusters:
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
        rows = self.clusters.rows_of_octants
        crossed = [functions[part].T @ weighted[part] for part in rows]
        own = [derivatives[part].T @ weighted[part] for part in rows]
        return np.array(crossed, float), np.array(own, float)

    def matrix(self, octants: np.ndarray | slice = EVERYWHERE) -> np.ndarray:
        """Return the normal matrix of function and offset, (K + 6, K + 6)."""
        crossed, own = (part[octants, :, :6].sum(axis=0) for part in self.sums)
        return np.block([[self.normals.normal(octants), crossed], [crossed.T, own]])

    def step(self, octants: np.ndarray | slice = EVERYWHERE) -> np.ndarray:
        """Return the step of function and offset that some octants ask for, (K + 6,)."""
        of_function, of_offset = (part[octants, :, 6].sum(axis=0) for part in self.sums)
        held = self.normals.ridge * self.function
        return _solve_scaled(self.matrix(octants), np.concatenate([of_function - held, of_offset]))

    def with_own_normals(self) -> _Solved:
        """Return the same with the normal matrix of its weights: halves have no other guard."""
        return replace(self, normals=self.equations.weigh(self.weights))

    def covariance(self) -> np.ndarray:
        """Covariance of the offset's error, (6, 6): see the module."""
        clusters = self.clusters
        voxel = float(np.cbrt(np.prod(clusters.dwi.voxel_sizes)))
        in_mm = self.in_mm
        halves = self.of_halves() * in_mm
        by_axis = (halves**2).mean(axis=0)
        by_axis = (by_axis + by_axis.mean()) / 2  # six tell a variance poorly
        other = self.of_predicted_gradient() * in_mm
        variances = HALVES_FACTOR**2 * by_axis + (OTHER_FACTOR * other) ** 2
        variances += (FLOOR_VOXELS * voxel) ** 2
        return np.diag(variances / in_mm**2) + self.sampling()

    def of_halves(self) -> np.ndarray:
        """Offsets of six halves of the brain from that of the whole, (6, 6) twists."""
        found = []
        for axis in range(3):
            for side in (0, 1):
                octants = np.flatnonzero((np.arange(8) >> axis & 1) == side)
                found.append(self.step(octants)[-6:])
        return np.array(found) - self.step()[-6:]

    def of_predicted_gradient(self) -> np.ndarray:
        """One step to where the residual is orthogonal to the predicted gradient, (6,) twist."""
        clusters, equations = self.clusters, self.equations
        slopes = equations.basis.slopes(equations.moments, clusters.place, self.function)
        slopes = np.where(equations.moments.known[:, None, None], slopes, 0.0)
        weights, functions = self.weights[:, None], equations.functions
        weighted = -_centred(clusters.by_offset(slopes)).astype(np.float32) * weights
        # instruments less what the functions can take up
        crossed = (functions.T @ weighted).astype(float)
        taken = _solve_scaled(self.normals.normal(), crossed)
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
        sums = [
            np.concatenate([scores[rows] @ part[rows] for part in
                            (self.equations.functions, self.seen.derivatives)])
            for rows in np.split(order, starts[1:])
        ]  # fmt: skip
        return sandwich(_solve_scaled(self.matrix(), np.array(sums, float).T)[-6:])


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


def _solve_scaled(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve normal equations whose unknowns differ in size; those without rows stay at zero."""
    scale = np.sqrt(np.diag(normal))
    scale[scale < 1e-12 * scale.max()] = np.inf
    scaled = normal / np.outer(scale, scale)
    scaled[np.diag_indices_from(scaled)] += np.where(np.isinf(scale), 1.0, 1e-12)
    shape = (-1,) + (1,) * (right.ndim - 1)
    return np.linalg.solve(scaled, right / scale.reshape(shape)) / scale.reshape(shape)

# SPDX-License-Identifier: Apache-2.0
"""The offset between b=0 and diffusion-weighted frames, from the images.

The contrasts differ, but what a voxel is made of determines both. In a voxel let ``m`` be the mean
of a diffusion-weighted shell and ``s`` its standard deviation over directions; then the b=0 signal
is a smooth function of both, which the data themselves teach: hat functions of ``m`` and ``s`` and
their products, the single ones also times x, y and z, since the coil's sensitivity changes through
the head. At points ``x`` of the diffusion-weighted frame, with ``A`` the offset sought, ::

    b₀(A x) ≈ Σ_k β_k φ_k(x)

is solved for ``β`` and, by Gauss-Newton, for ``A`` together, so that the function cannot take up
a misplacement (variable projection). Three things keep it unbiased:

- *Points off the grid*, and ``m`` and ``s`` formed from the volumes at these very points: a mean
  image on a grid would lock ``A`` to its interpolation pattern.
- *Contrasts within clusters of points* instead of a band-pass: from each point the mean of three
  random neighbours is subtracted, on both sides. What is smooth in space drops out, and no image
  of any basis function is ever formed.
- *Evenly spaced knots*: between knots at quantiles the function is too stiff just where fluid
  begins, which displaced it by several tenths of a millimetre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from eddymotion.dataset import DWI, Spline
from eddymotion.geometry import Motion, exp_rigid
from eddymotion.parallel import parallel_iterate, parallel_map
from eddymotion.pyramid import (
    BLOCK_MM,
    BRAIN_SIZE_MM,
    FWHM_TO_SIGMA,
    MIN_POINTS,
    blocks_of,
    head_scale,
    jittered_points,
    low_pass,
)

N_KNOTS = 10
KNOT_RANGE = (0.01, 0.99)
"""Quantiles of a feature between which the knots are spaced evenly."""

N_NEIGHBOURS = 3

MIN_VOLUMES_FOR_SPREAD = 6
"""With fewer volumes the standard deviation over directions is mostly noise."""

MAX_ITERATIONS = 15

RIDGE = 1e-4
"""On ``β``, relative to the mean of the normal matrix' diagonal: hats that no point reaches."""

VOLUMES_AT_A_TIME = 16
ROWS_AT_A_TIME = 2048
ROBUST_ITERATIONS = 4


@dataclass(frozen=True)
class _Width:
    """A step from coarse to fine.

    Parameters
    ----------
    fwhm : float
        Of the smoothing, voxels; the neighbours spread in proportion.
    n_clusters : int
        Clusters of points.
    n_volumes : int
        At most so many volumes give mean and standard deviation.
    tolerance : float
        Step, relative to `fwhm`, at which it ends.
    """

    fwhm: float
    n_clusters: int
    n_volumes: int
    tolerance: float

    @property
    def neighbours(self) -> float:
        return 3 * self.fwhm


COARSE_TO_FINE = (
    _Width(4.0, 6_000, n_volumes=24, tolerance=0.01),
    _Width(2.0, 10_000, n_volumes=24, tolerance=0.01),
    _Width(1.0, 30_000, n_volumes=1000, tolerance=0.001),
)


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
    to_b0, covariance = np.linalg.inv(start), np.full((6, 6), np.nan)
    for width in COARSE_TO_FINE:
        clusters = _Clusters.draw(dwi, width, random, n_threads)
        every = -(-len(volumes) // width.n_volumes)
        basis = clusters.basis(volumes[::every], motion.select(slice(None, None, every)))
        found = clusters.solve(to_b0, basis, b0_matrices, width.tolerance)
        if found is None:
            return None
        to_b0, covariance = found
    return np.linalg.inv(to_b0), covariance


@dataclass(frozen=True, eq=False)
class _Clusters:
    """Points of the brain with their neighbours, at one width.

    Parameters
    ----------
    dwi : DWI
    fwhm : float
        Of the smoothing of each volume, mm.
    points : (C, 1 + N_NEIGHBOURS, 3) array
        In the diffusion-weighted frame, the middle of each cluster first.
    n_threads : int
    """

    dwi: DWI
    fwhm: float
    points: np.ndarray
    n_threads: int

    @classmethod
    def draw(
        cls, dwi: DWI, width: _Width, random: np.random.Generator, n_threads: int
    ) -> _Clusters:
        """Draw clusters from the brain and its edge."""
        voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
        mask = ndimage.binary_dilation(dwi.mask)
        middles = jittered_points(mask, dwi.affine, width.n_clusters, random)
        middles = middles[np.lexsort(middles.T)]
        spread = width.neighbours * voxel * FWHM_TO_SIGMA
        away = random.normal(scale=spread, size=(len(middles), N_NEIGHBOURS, 3))
        points = np.concatenate([middles[:, None], middles[:, None] + away], axis=1)
        return cls(dwi, width.fwhm * voxel, points, n_threads)

    def basis(self, volumes: np.ndarray, motion: Motion) -> np.ndarray:
        """Contrasts of the functions of mean and standard deviation, (C, k); NaN outside."""
        mean, spread = (
            moment.reshape(self.points.shape[:2]) for moment in self._moments(volumes, motion)
        )
        by_mean = _Hats.over(mean)
        by_spread = _Hats.over(spread) if len(volumes) >= MIN_VOLUMES_FOR_SPREAD else None
        place = (self.points - self.dwi.brain_center) / self._reach

        def columns(chunk: slice) -> np.ndarray:
            both = single = by_mean.at(mean[chunk])
            if by_spread is not None:
                other = by_spread.at(spread[chunk])
                both = (both[..., :, None] * other[..., None, :]).reshape(*single.shape[:2], -1)
                single = np.concatenate([single, other[..., 1:]], axis=2)
            parts = [both, *(single * along for along in np.split(place[chunk], 3, axis=2))]
            return np.hstack([_contrast(part) for part in parts])

        chunks = [slice(k, k + ROWS_AT_A_TIME) for k in range(0, len(mean), ROWS_AT_A_TIME)]
        return np.concatenate(parallel_map(columns, chunks, n_threads=self.n_threads))

    def solve(
        self, to_b0: np.ndarray, basis: np.ndarray, b0_matrices: np.ndarray, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Solve for the offset and the function together; None with too few points."""
        center = self.dwi.brain_center
        b0s = self.dwi.gradients.b0s
        splines = [Spline.of(low_pass(self.dwi.evidence(v), self.fwhm)) for v in b0s]
        known = np.isfinite(basis).all(axis=1)
        columns = np.zeros((len(basis), basis.shape[1] + 6))
        columns[known, :-6] = basis[known]
        weights = np.ones(len(basis))
        for iteration in range(MAX_ITERATIONS):
            values, jacobian = self._read_b0(splines, b0_matrices, to_b0)
            usable = known & np.isfinite(values)
            if usable.sum() < MIN_POINTS + basis.shape[1]:
                return None
            values[~usable] = 0.0
            columns[:, -6:] = np.where(usable[:, None], -jacobian, 0.0)
            found = _regress(
                values,
                columns,
                weights * usable,
                n_iterations=1 if iteration else ROBUST_ITERATIONS,
                n_threads=self.n_threads,
            )
            weights = np.where(usable, found.weights, weights)
            step = found.coefficients[-6:]
            to_b0 = to_b0 @ exp_rigid(step, center)
            length = np.linalg.norm(step[:3]) + self._reach * np.linalg.norm(step[3:])
            if length < tolerance * self.fwhm:
                break
        covariance = found.covariance(columns, self._blocks(self.points[:, 0]))[-6:, -6:]
        return to_b0, covariance

    @property
    def _reach(self) -> float:
        """Distance from the centre (mm) in which positions and rotations are measured."""
        return 0.5 * BRAIN_SIZE_MM * head_scale(self.dwi.mask, self.dwi.voxel_sizes)

    def _blocks(self, points: np.ndarray) -> np.ndarray:
        edge = BLOCK_MM * head_scale(self.dwi.mask, self.dwi.voxel_sizes)
        return blocks_of(points, edge)

    def _moments(self, volumes: np.ndarray, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the volumes at all points; NaN outside."""
        points = self.points.reshape(-1, 3)

        def read(k: int) -> np.ndarray:
            spline = Spline.of(low_pass(self.dwi.evidence(volumes[k]), self.fwhm))
            recorded, factor = motion.displaced(k, points)
            return spline.sample(recorded) * factor

        total, squares = np.zeros(len(points)), np.zeros(len(points))
        for first in range(0, len(volumes), VOLUMES_AT_A_TIME):
            block = range(first, min(first + VOLUMES_AT_A_TIME, len(volumes)))
            for values in parallel_map(read, block, n_threads=self.n_threads):
                total += values
                squares += values.astype(float) ** 2
        mean = total / len(volumes)
        return mean, np.sqrt(np.maximum(squares / len(volumes) - mean**2, 0.0))

    def _read_b0(
        self, splines: list[Spline], b0_matrices: np.ndarray, to_b0: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Contrasts of the mean b=0 signal (C,) and of its derivatives by the offset (C, 6)."""
        points = self.points.reshape(-1, 3)

        def read(k: int) -> tuple[np.ndarray, np.ndarray]:
            return splines[k].sample_with_gradient(points, b0_matrices[k] @ to_b0)

        values, slopes = np.zeros(len(points)), np.zeros((len(points), 3))
        for one, other in parallel_map(read, range(len(splines)), n_threads=self.n_threads):
            values += one
            slopes += other
        turning = np.cross(points - self.dwi.brain_center, slopes)
        jacobian = np.hstack([slopes, turning]) / len(splines)
        shape = self.points.shape[:2]
        return (
            _contrast(values.reshape(*shape, 1))[:, 0] / len(splines),
            _contrast(jacobian.reshape(*shape, 6)),
        )


def _contrast(clusters: np.ndarray) -> np.ndarray:
    """Subtract from each middle the mean of its neighbours: (C, 1 + n, k) → (C, k)."""
    return clusters[:, 0] - clusters[:, 1:].mean(axis=1)


@dataclass(frozen=True)
class _Hats:
    """Evenly spaced linear B-splines of a feature, constant beyond the ends."""

    low: float
    high: float

    @classmethod
    def over(cls, feature: np.ndarray) -> _Hats:
        """Choose the ends by the values of a feature."""
        known = feature[np.isfinite(feature)]
        return cls(*np.quantile(known, KNOT_RANGE)) if len(known) else cls(0.0, 1.0)

    def at(self, feature: np.ndarray) -> np.ndarray:
        """Return the functions at some values, (…, N_KNOTS); NaN where they are."""
        span = max(self.high - self.low, np.finfo(float).tiny)
        at = np.clip((feature - self.low) / span * (N_KNOTS - 1), 0, N_KNOTS - 1)[..., None]
        return np.maximum(1 - np.abs(at - np.arange(N_KNOTS)), 0.0)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A robust regression.

    Parameters
    ----------
    coefficients : (k,) array
    normal : (k, k) array
        Normal matrix, weighted, with its ridge.
    residual, weights : (C,) array
    """

    coefficients: np.ndarray
    normal: np.ndarray
    residual: np.ndarray
    weights: np.ndarray

    def covariance(self, columns: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Covariance of the coefficients by a sandwich over blocks of points, (k, k)."""
        order = np.argsort(blocks, kind="stable")
        starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        scores = columns[order] * (self.weights * self.residual)[order, None]
        parts = np.linalg.solve(self.normal, np.add.reduceat(scores, starts, axis=0).T)
        return parts @ parts.T


def _regress(
    values: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    *,
    n_iterations: int,
    n_threads: int = 1,
) -> _Fit:
    """Regress robustly, from given weights: Student-t with one degree of freedom.

    Rows of weight zero have no say and keep it.
    """
    usable = weights > 0
    scale = np.sqrt(np.einsum("ck,ck->k", columns, columns) / len(columns))
    scale[scale == 0] = 1.0
    ridge = np.append(np.full(columns.shape[1] - 6, RIDGE), np.zeros(6)) * scale**2
    for _ in range(n_iterations):
        normal, right = _normal_equations(values, columns, weights, n_threads)
        normal[np.diag_indices_from(normal)] += ridge * (np.diag(normal) / scale**2).mean()
        coefficients = np.linalg.solve(normal / np.outer(scale, scale), right / scale) / scale
        residual = values - columns @ coefficients
        spread = np.median(residual[usable] ** 2) + np.finfo(float).tiny
        weights = np.where(usable, 2.0 / (1.0 + residual**2 / spread), 0.0)
    return _Fit(coefficients, normal, residual, weights)


def _normal_equations(
    values: np.ndarray, columns: np.ndarray, weights: np.ndarray, n_threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """``XᵀWX`` and ``XᵀWy``, summed over fixed chunks of rows: alike for any `n_threads`."""
    chunks = [slice(k, k + ROWS_AT_A_TIME) for k in range(0, len(values), ROWS_AT_A_TIME)]

    def partial(chunk: slice) -> tuple[np.ndarray, np.ndarray]:
        half = columns[chunk] * np.sqrt(weights[chunk, None])
        return half.T @ half, half.T @ (values[chunk] * np.sqrt(weights[chunk]))

    normal, right = np.zeros((columns.shape[1],) * 2), np.zeros(columns.shape[1])
    for a, b in parallel_iterate(partial, chunks, n_threads=n_threads):
        normal += a
        right += b
    return normal, right

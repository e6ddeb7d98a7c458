# SPDX-License-Identifier: Apache-2.0
"""Neighbouring points of the brain, and the diffusion-weighted signal there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy

from eddymotion.data.series import DWI
from eddymotion.estimation.frames.contrast.basis import Basis, Moments
from eddymotion.images.grid import transformed
from eddymotion.images.image import Spline
from eddymotion.images.pyramid import (
    BRAIN_SIZE_MM,
    FWHM_TO_SIGMA,
    crop,
    fine_widths,
    head_scale,
    jittered_points,
    low_pass,
)
from eddymotion.machine.parallel import parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rms_displacement

N_POINTS = 4
"""Points of a cluster."""

POINTS_A_VOXEL = 2
"""Points of all clusters, at most, for each voxel: with one, where they are drawn displaces the
offset by .05 mm without an off-resonance field, and by .07 mm in one."""

MIN_VOLUMES_FOR_SPREAD = 6
"""With fewer volumes the standard deviation over directions is mostly noise."""

VOLUMES_AT_A_TIME = 16
ROWS_AT_A_TIME = 2048

MARGIN_FWHM, MARGIN_VOXELS = 2.0, 3.0
"""Margin of a volume around the points that are read: the reach of its filters."""

DEEP_MM = 10.0
"""Least distance from the edge, in a human head, of points deep inside the brain."""

LEAST_INSIDE = 0.6
"""Least share of the brain with its edge for which the voxels inside the edge are enough."""

APART_VOXELS = 0.1
"""Offsets that differ by less belong to one minimum of the cost; others found were 0.3 or more."""

BOX_EVERY = 16
"""One in this many points is used to find which part of a volume is read."""


@dataclass(frozen=True)
class Width:
    """A step from coarse to fine.

    Parameters
    ----------
    fwhm : float
        Of the smoothing of each volume, voxels; the points of a cluster spread in proportion.
    n_clusters : int
        Clusters of points; fewer in a small head: see :data:`POINTS_A_VOXEL`.
    place_order : int
        Order of the polynomials of the place.
    n_volumes : int
        Largest number of volumes of which mean and standard deviation are taken.
    tolerance : float
        Step, relative to `fwhm`, at which it ends.
    with_edge : bool
        Whether clusters are drawn from the edge of the brain as well: the outline has a wide
        capture range, but tissue around the brain has another contrast.
    n_normals : int
        Number of normal matrices with a part of the clusters, before the last one.
    """

    fwhm: float
    n_clusters: int
    place_order: int
    n_volumes: int
    tolerance: float
    with_edge: bool = True
    n_normals: int = 3

    @property
    def is_finest(self) -> bool:
        """Whether this is the last width, at which errors are estimated."""
        return self.fwhm == FINE.fwhm

    @property
    def neighbours(self) -> float:
        """Full width of the spread of a cluster's points, voxels."""
        return 3 * self.fwhm


COARSE = (
    Width(4.0, 3_000, place_order=2, n_volumes=24, tolerance=0.01),
    Width(2.0, 5_000, place_order=2, n_volumes=24, tolerance=0.01),
)
FINE = Width(1.0, 10_000, place_order=3, n_volumes=1000, tolerance=0.002, with_edge=False)
FINE_NEAR = replace(FINE, n_clusters=5_000, n_volumes=24, n_normals=1)
"""Where time determines the offset to a fraction of a voxel, so that images add little."""


@dataclass(frozen=True, eq=False)
class Clusters:
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
    def draw(cls, dwi: DWI, width: Width, random: np.random.Generator, n_threads: int) -> Clusters:
        """Draw clusters from the brain, with or without its edge."""
        voxel = float(np.cbrt(np.prod(dwi.voxel_sizes)))
        mask = _brain_and_edge(dwi.mask) if width.with_edge else _inside(dwi.mask)
        n_clusters = min(width.n_clusters, POINTS_A_VOXEL * int(mask.sum()) // N_POINTS)
        middles = jittered_points(mask, dwi.affine, n_clusters, random)
        middles = middles[np.lexsort(middles.T)]
        spread = width.neighbours * voxel * FWHM_TO_SIGMA
        away = random.normal(scale=spread, size=(len(middles), N_POINTS - 1, 3))
        points = np.concatenate([middles[:, None], middles[:, None] + away], axis=1)
        octants = (middles > np.median(middles, axis=0)) @ [1, 2, 4]
        order = np.argsort(octants, kind="stable")
        fwhm = np.maximum(width.fwhm * voxel, fine_widths(dwi.voxel_sizes))
        return cls(dwi, fwhm, points[order], octants[order], n_threads)

    def select(self, clusters: slice | np.ndarray) -> Clusters:
        """Return some of them."""
        return replace(self, points=self.points[clusters], octants=self.octants[clusters])

    @property
    def are_deep(self) -> np.ndarray:
        """Which clusters lie deep inside the brain, (C,) bool; a cut by the field is no edge."""
        dwi = self.dwi
        deep = DEEP_MM * head_scale(dwi.mask, dwi.voxel_sizes)
        voxels = transformed(np.linalg.inv(dwi.affine), self.points[:, 0]).round().astype(int)
        there = tuple(np.clip(voxels, 0, np.array(dwi.shape) - 1).T)
        return are_farther_inside(dwi.mask, dwi.voxel_sizes, there, deep)

    @property
    def rows_of_octants(self) -> list[slice]:
        """Rows, a row a point, of each octant."""
        ends = N_POINTS * np.searchsorted(self.octants, np.arange(9))
        return [slice(*pair) for pair in pairwise(ends)]

    def shown(self, volume: int, matrix: np.ndarray) -> Spline:
        """Return the smoothed part of a volume that contains the points."""
        image = self.dwi.volume_with_missing(volume)
        there = transformed(matrix, self.points.reshape(-1, 3)[::BOX_EVERY])
        margin = MARGIN_FWHM * self.fwhm + MARGIN_VOXELS * self.dwi.voxel_sizes
        return Spline.of(low_pass(crop(image, there, margin), self.fwhm))

    def moments(
        self, volumes: np.ndarray, motion: Motion, *, with_gradients: bool = False
    ) -> Moments:
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
        found = Moments(
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

    def are_apart(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two offsets are more than details of one solution."""
        distance = rms_displacement(one, other, self.center)
        return bool(distance > APART_VOXELS * np.cbrt(np.prod(self.dwi.voxel_sizes)))

    @property
    def place(self) -> np.ndarray:
        """Places of the points from the centre, in units of the reach, (C, N_POINTS, 3)."""
        return (self.points - self.center) / self.reach

    def functions(self, basis: Basis, moments: Moments) -> np.ndarray:
        """Contrasts of all functions within clusters, (C · N_POINTS, K) float32; zero outside."""
        place, known = self.place, moments.known[:, None]
        found = np.empty((known.size * N_POINTS, len(basis.ridge())), np.float32)

        def fill(chunk: slice) -> None:
            mean = np.where(known[chunk], moments.mean[chunk], 0.0)
            spread = moments.spread
            if spread is not None:
                spread = np.where(known[chunk], spread[chunk], 0.0)
            contrasts = centred(basis.at(mean, spread, place[chunk]))
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


def are_farther_inside(
    mask: np.ndarray, voxel_sizes: np.ndarray, voxels: tuple[np.ndarray, ...], distance: float
) -> np.ndarray:
    """Whether voxels, three index arrays (C,), lie farther than a distance (mm) inside a mask.

    What lies outside the image is no edge. Only distances from the voxels that touch the mask are
    computed, since the nearest is one of them. A distance transform of the whole image would take
    many times as long.
    """
    edge = scipy.ndimage.binary_dilation(mask) & ~mask
    tree = scipy.spatial.cKDTree(np.argwhere(edge) * voxel_sizes)
    places = np.stack(voxels, axis=1) * voxel_sizes
    apart, _ = tree.query(places, distance_upper_bound=distance * (1 + 1e-9))
    return mask[voxels] & (apart > distance)


def _brain_and_edge(brain: np.ndarray) -> np.ndarray:
    """Return a brain (X, Y, Z) and the voxels next to it."""
    return scipy.ndimage.binary_dilation(brain)


def _inside(brain: np.ndarray) -> np.ndarray:
    """Return a brain (X, Y, Z) without its outermost voxels, if enough is left of it.

    A cut by the field of view is no edge.
    """
    inside, all_of_it = (
        scipy.ndimage.binary_erosion(brain, border_value=1),
        _brain_and_edge(brain),
    )
    return inside if inside.sum() >= LEAST_INSIDE * all_of_it.sum() else all_of_it


def centred(clusters: np.ndarray) -> np.ndarray:
    """Subtract from each point the mean of its cluster: (C, N_POINTS, k) → (C · N_POINTS, k)."""
    centred = clusters - clusters.mean(axis=1, keepdims=True)
    return centred.reshape(-1, clusters.shape[-1])

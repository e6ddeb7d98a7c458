# SPDX-License-Identifier: Apache-2.0
"""Two scans of one head with a known transform between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nibabel.affines import apply_affine
from scipy.linalg import expm

from eddymotion.images.image import Image
from eddymotion.mapping.rigid import exp_rigid, rigid_matrix, target_registration_error
from eddymotion.registration import Registration
from eddymotion.simulation import Grid, Phantom, procedural_head
from eddymotion.simulation.acquisition import voxel_means
from eddymotion.wording import short_repr

VOXEL_MM = 4.0
SNR = 40.0
MARGIN_VOXELS = 4

SPECKLE_SIGMA = 1.6
"""Voxels."""


@dataclass(frozen=True, eq=False)
class KnownPair:
    """A pair of images and the truth.

    Parameters
    ----------
    fixed, moving : Image
    truth : (4, 4) array
        Fixed → moving, RAS+ mm.
    fixed_mask, moving_mask : (X, Y, Z) bool array
        The brain in each.
    """

    fixed: Image
    moving: Image
    truth: np.ndarray
    fixed_mask: np.ndarray
    moving_mask: np.ndarray

    __repr__ = short_repr

    @property
    def points(self) -> np.ndarray:
        """Points of the brain in the fixed image, (P, 3), RAS+ mm."""
        return apply_affine(self.fixed.affine, np.argwhere(self.fixed_mask)[::7])

    def error(self, found: Registration | np.ndarray) -> float:
        """Largest distance (mm) in the brain between where a result and the truth put a point."""
        if isinstance(found, Registration):
            there = apply_affine(self.truth, self.points)
            return float(np.linalg.norm(found.map(self.points) - there, axis=1).max())
        return float(target_registration_error(found, self.truth, self.points).max())


@lru_cache(maxsize=1)
def small_head() -> Phantom:
    """Build the head that all pairs show."""
    return procedural_head(VOXEL_MM)


def known_pair(
    truth: np.ndarray,
    *,
    voxel_sizes: float | Sequence[float] = VOXEL_MM,
    moving_voxel_sizes: float | Sequence[float] | None = None,
    orientation: str = "RAS",
    moving_orientation: str = "RAS",
    turn: np.ndarray | None = None,
    remap: Callable[[np.ndarray], np.ndarray] | None = None,
    margin: int = MARGIN_VOXELS,
    snr: float = SNR,
    seed: int = 0,
) -> KnownPair:
    """Scan a head at rest, and moved.

    Parameters
    ----------
    truth : (4, 4) array
        Where points of the head at rest are in the second scan, RAS+ mm; affine.
    voxel_sizes, moving_voxel_sizes : float or three
        mm, along right-left, anterior-posterior, superior-inferior; the second like the first
        when not given.
    orientation, moving_orientation : str
        Where the image axes point, as nibabel's axis codes.
    turn : (3, 3) array, optional
        Turns the grid of the second scan: an oblique one.
    remap : callable, optional
        Of the intensities of the second scan, before noise: white matter is 700, fluid 1500.
    margin : int
        Voxels around the head.
    snr : float
        White matter over noise (Rician).
    seed : int
    """
    head = small_head()
    first = _padded(Grid.covering(head, voxel_sizes, orientation), margin)
    sizes = voxel_sizes if moving_voxel_sizes is None else moving_voxel_sizes
    second = _padded(Grid.covering(head, sizes, moving_orientation, turn), margin)
    random = np.random.default_rng(seed)
    fixed, fixed_mask = _scan(head, np.eye(4), first, None, snr, random)
    moving, moving_mask = _scan(head, truth, second, remap, snr, random)
    return KnownPair(fixed, moving, np.asarray(truth, float), fixed_mask, moving_mask)


def speckled_pair(
    shape: tuple[int, int, int] = (28, 30, 32),
    *,
    voxels: Sequence[float] = (0.0, 3.0, 2.5),
    degrees: Sequence[float] = (3.0, 0.0, 0.0),
    noise: float = 0.0,
    seed: int = 0,
) -> KnownPair:
    """Build the known case of digital image correlation: a speckled volume, and the same moved.

    Parameters
    ----------
    shape : three int
        Of both volumes; voxels of 1 mm.
    voxels, degrees : three float
        Translation, and rotation vector about the middle, along the image axes.
    noise : float
        Standard deviation of normal noise; the speckles are about 1 high.
    seed : int
        Of speckles and noise.
    """
    center = (np.array(shape) - 1) / 2
    truth = exp_rigid(np.concatenate([voxels, np.deg2rad(degrees)]), center)
    random = np.random.default_rng(seed)
    n_speckles = int(400 * np.prod(shape) / (28 * 30 * 32))
    middles = random.uniform(-6, np.array(shape) + 6, (n_speckles, 3))
    heights = random.uniform(0.3, 1.0, n_speckles)
    first, second = (
        Image(_speckles(shape, matrix, middles, heights, noise, random), np.eye(4))
        for matrix in (np.eye(4), truth)
    )
    everywhere = np.ones(shape, bool)
    return KnownPair(first, second, truth, everywhere, everywhere)


def _speckles(
    shape: tuple[int, int, int],
    matrix: np.ndarray,
    middles: np.ndarray,
    heights: np.ndarray,
    noise: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Sum Gaussian speckles, moved by a rigid matrix: exact, nothing is interpolated."""
    data = np.zeros(shape)
    moved = apply_affine(matrix, middles)
    for middle, height in zip(moved, heights, strict=True):
        along = [
            np.exp(-((np.arange(n) - at) ** 2) / (2 * SPECKLE_SIGMA**2))
            for n, at in zip(shape, middle, strict=True)
        ]
        data += height * np.einsum("i,j,k->ijk", *along)
    return (data + random.normal(0.0, noise, shape)).astype(np.float32)


def pose(
    millimetres: Sequence[float],
    degrees: Sequence[float],
    *,
    zoom: float = 1.0,
    shears: Sequence[float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Build an affine matrix about the origin: stretch and shear, turn, translate."""
    a, b, c = shears
    stretch = zoom * expm(np.array([[0, a, b], [a, 0, c], [b, c, 0]], float))
    matrix = rigid_matrix(np.array(millimetres, float), np.deg2rad(degrees), np.zeros(3))
    matrix[:3, :3] = matrix[:3, :3] @ stretch
    return matrix


def cropped(image: Image, mask: np.ndarray, axis: int, keep: slice) -> tuple[Image, np.ndarray]:
    """Cut image and mask along an axis; what is left keeps its place in the world."""
    box = [slice(None)] * 3
    box[axis] = keep
    start = np.zeros(3)
    start[axis] = keep.indices(image.data.shape[axis])[0]
    affine = image.affine.copy()
    affine[:3, 3] = apply_affine(image.affine, start)
    return Image(image.data[tuple(box)], affine), mask[tuple(box)]


def _padded(grid: Grid, voxels: int) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, voxels)
    x, y, z = (n + 2 * voxels for n in grid.shape)
    return Grid((x, y, z), affine)


def _scan(
    head: Phantom,
    truth: np.ndarray,
    grid: Grid,
    remap: Callable[[np.ndarray], np.ndarray] | None,
    snr: float,
    random: np.random.Generator,
) -> tuple[Image, np.ndarray]:
    to_head = np.linalg.inv(head.affine) @ np.linalg.inv(truth) @ grid.affine
    signal = head.signal(0.0, np.zeros(3))
    clean = voxel_means(signal if remap is None else remap(signal), to_head, grid.shape)
    brain = voxel_means(head.brain.astype(np.float32), to_head, grid.shape) > 0.5
    noise = random.normal(0.0, head.white_signal / snr, (2, *clean.shape))
    noisy = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    return Image(noisy.T, grid.affine), brain.T

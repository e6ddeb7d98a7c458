# SPDX-License-Identifier: Apache-2.0
"""Acquisition in k-space: what a scanner makes of a head that is finer than its voxels.

The head is sampled several times finer than the voxels, weighed with the receive field, averaged
over each slice and transformed within it. The scanner keeps the central part of k-space, so that
edges ring (Gibbs); it may leave out lines (partial Fourier), and disagree with itself between odd
and even ones (Nyquist ghost). Noise is complex and enters the lines that are measured. The image
is the magnitude of the transform back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import fft

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid, all_points, block_means, grid_points

MARGIN_MM = 24.0
"""How far the measured field of view reaches beyond the image within slices, as with oversampled
readout and saturation of the rest: a head that moves does not fold over."""

N_LOOPS = 8
"""Receive loops around the head."""

LOOP_DISTANCE_MM, LOOP_REACH_MM = 150.0, 90.0
"""Of the loops from the centre; where the sensitivity of one has fallen to a half."""

HEAD_RADII_MM = (72.0, 88.0, 66.0)
"""The ellipsoid about the centre of the field of view over which the receive field varies."""

PHASE = 0.8
"""Phase (radians) of the image, at the radius of a head."""

FIELD_SCALE_MM = 90.0


@dataclass(frozen=True)
class KSpace:
    """How k-space is measured.

    Parameters
    ----------
    oversampling : int
        Points of the head along each axis of a voxel.
    coil_variation : float
        Largest over least receive sensitivity within a head at the centre; the field of several
        loops stays with the scanner, and its mean over a head is one.
    partial_fourier : float
        Share of the phase-encoding lines that are measured, 0.5 … 1; the others are zero.
    ghost : float
        Nyquist ghost, relative to the image.
    pe_axis : str
        Phase-encoding axis of the image, ``i`` or ``j``, with ``-`` for the other polarity.
    seed : int
        Where the loops are.

    Raises
    ------
    EddymotionError
        If a value makes no sense.
    """

    oversampling: int = 2
    coil_variation: float = 2.0
    partial_fourier: float = 1.0
    ghost: float = 0.0
    pe_axis: str = "j"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("oversampling", 1, 8), ("coil_variation", 1, 10),
                                  ("partial_fourier", 0.5, 1), ("ghost", 0, 0.5)):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise EddymotionError(
                    f"k-space: {name.replace('_', ' ')} {getattr(self, name):g} given, expected "
                    f"{least:g} to {most:g}"
                )
        if self.pe_axis[0] not in "ij":
            raise EddymotionError(
                f"k-space: phase encoding along {self.pe_axis!r} given, expected i, i-, j or j-: "
                "k-space is measured slice by slice"
            )


@dataclass(frozen=True, eq=False)
class Scanner:
    """A scanner that measures a grid in k-space.

    Parameters
    ----------
    settings : KSpace
    grid : Grid
        Of the image.
    """

    settings: KSpace
    grid: Grid

    @cached_property
    def margin(self) -> tuple[int, int, int]:
        """Voxels that are measured beyond the image, on each side of each axis."""
        i, j = np.ceil(MARGIN_MM / np.linalg.norm(self.grid.affine[:3, :2], axis=0)).astype(int)
        return int(i), int(j), 0

    @cached_property
    def fine_grid(self) -> Grid:
        """Where the head is sampled."""
        return self.grid.refined((self.settings.oversampling,) * 3, self.margin)

    def refined(self, slab: Grid) -> Grid:
        """Return where the head is sampled within the layers of a slab of the grid."""
        return slab.refined(
            (self.settings.oversampling, self.settings.oversampling, 1), self.margin
        )

    @cached_property
    def receive_field(self) -> np.ndarray:
        """Complex sensitivity on the fine grid, (Z, Y, X) complex64."""
        return self.sensitivity(self.fine_grid)

    def sensitivity(self, grid: Grid) -> np.ndarray:
        """Complex sensitivity at the voxels of a grid, (Z, Y, X) complex64."""
        field = np.empty(grid.shape[::-1], np.complex64)
        for z, plane in enumerate(field):
            points = grid_points(grid.shape, grid.affine, order="F", slab=slice(z, z + 1))
            points = points.reshape(*plane.shape, 3) - self.grid.center
            plane[...] = receive_field(points, self.settings.coil_variation, self.settings.seed)
        return field

    @cached_property
    def filter(self) -> np.ndarray:
        """Weights of k-space, (Y, X) complex64, zero frequency first.

        Lines that are not measured are zero; odd and even ones differ in phase; a linear phase
        moves the samples from the centres of fine voxels to those of the image.
        """
        _, ny, nx = self._measured
        f = self.settings.oversampling
        shift = 0.5 - 0.5 / f  # voxels
        ky, kx = fft.fftfreq(ny)[:, None], fft.fftfreq(nx)[None]
        weights = np.exp(2j * np.pi * shift * (ky + kx)) / f**2
        axis = 0 if self.settings.pe_axis[0] == "j" else 1
        n = (ny, nx)[axis]
        lines = np.round(fft.fftfreq(n, 1 / n)).astype(int)
        along = lines * (-1 if self.settings.pe_axis.endswith("-") else 1)
        measured = along + n // 2 >= n - round(self.settings.partial_fourier * n)
        flip = np.arctan(self.settings.ghost) * np.where(lines % 2, 1, -1)
        per_line = measured * np.exp(1j * flip)
        return (weights * (per_line[:, None] if axis == 0 else per_line)).astype(np.complex64)

    @property
    def _measured(self) -> tuple[int, int, int]:
        x, y, z = (n + 2 * m for n, m in zip(self.grid.shape, self.margin, strict=True))
        return z, y, x

    def image(self, fine: np.ndarray) -> np.ndarray:
        """Complex image of a signal on the fine grid, free of noise: (Z, Y, X) complex64."""
        f = self.settings.oversampling
        return self.reconstructed(block_means(fine * self.receive_field, (f, 1, 1)))

    def reconstructed(self, slices: np.ndarray) -> np.ndarray:
        """Measure and reconstruct slices (Z, Y, X) on the fine grid, weighed and averaged."""
        return self._cut(self._back(_central(fft.fft2(slices), self._measured[1:])))

    def noise(self, sigma: float, random: np.random.Generator) -> np.ndarray:
        """Complex noise of deviation `sigma` in both channels of the image: (Z, Y, X)."""
        channels = random.standard_normal((2, *self._measured), np.float32)
        k = channels[0] + 1j * channels[1]
        _, ny, nx = self._measured
        share = np.mean(self.filter != 0)
        unit = self.settings.oversampling**2 * sigma * np.sqrt(ny * nx / share)
        return self._cut(self._back(k * np.float32(unit)))

    def magnitude(
        self, image: np.ndarray, sigma: float, coils: int, random: np.random.Generator
    ) -> np.ndarray:
        """Add noise; root of the sum of squares over coils, of which one sees all signal."""
        if not sigma:
            return np.abs(image)
        total = np.abs(image + self.noise(sigma, random))
        for _ in range(coils - 1):
            total = np.hypot(total, np.abs(self.noise(sigma, random)))
        return total

    def _back(self, k: np.ndarray) -> np.ndarray:
        return fft.ifft2(k * self.filter)

    def _cut(self, measured: np.ndarray) -> np.ndarray:
        i, j, _ = self.margin
        return measured[:, j : measured.shape[1] - j, i : measured.shape[2] - i]


def receive_field(points: np.ndarray, variation: float, seed: int) -> np.ndarray:
    """Complex sensitivity of an array of loops around the centre, with its phase.

    Parameters
    ----------
    points : (..., 3) array
        RAS+ mm, from the centre of the field of view.
    variation : float
        Largest over least sensitivity in a head.
    seed : int

    Returns
    -------
    (...) complex64 array
        Its mean magnitude over a head is one.
    """
    loops, gains, slope, inside = _array(seed)
    power = np.log(variation) / np.ptp(inside)
    mean = np.exp(power * inside).mean()
    strength = np.exp(power * _array_strength(points, loops, gains)) / mean
    u = points / FIELD_SCALE_MM
    phase = PHASE * (u @ slope + 0.5 * u[..., 0] * u[..., 1])
    return (strength * np.exp(1j * phase)).astype(np.complex64)


@lru_cache(maxsize=4)
def _array(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw loops, their gains and the slope of the phase; the strength (log) in a head."""
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(8,)))
    loops, slope = _unit_vectors(N_LOOPS, random) * LOOP_DISTANCE_MM, _unit_vectors(1, random)[0]
    gains = random.uniform(0.6, 1.4, N_LOOPS)
    return loops, gains, slope, _array_strength(_points_of_a_head(), loops, gains)


def _unit_vectors(n: int, random: np.random.Generator) -> np.ndarray:
    vectors = random.normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _points_of_a_head() -> np.ndarray:
    """Points that fill :data:`HEAD_RADII_MM`, (P, 3) mm."""
    steps = np.linspace(-1, 1, 25)
    ball = all_points([steps] * 3)
    return ball[np.linalg.norm(ball, axis=1) <= 1] * HEAD_RADII_MM


def _array_strength(points: np.ndarray, loops: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Logarithm of the sum of squares of the loops' sensitivities at points (..., 3)."""
    squares = np.zeros(points.shape[:-1])
    for loop, gain in zip(loops, gains, strict=True):
        distance = ((points - loop) ** 2).sum(axis=-1)
        squares += gain / (1 + distance / LOOP_REACH_MM**2) ** 2
    return np.log(squares)


def _central(k: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Keep the lowest frequencies along the last two axes, zero frequency first."""
    for axis, n in zip((1, 2), shape, strict=True):
        kept = np.round(fft.fftfreq(n, 1 / n)).astype(int)
        k = np.take(k, kept % k.shape[axis], axis=axis)
    return k

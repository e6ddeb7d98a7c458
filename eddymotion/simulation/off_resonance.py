# SPDX-License-Identifier: Apache-2.0
"""Susceptibility: the field of a head in the scanner, and echo-planar images of it.

Matter is magnetised against the main field, air is not: each bit of the head is a dipole. Their
field is a product in frequency space (Salomir et al. 2003; Marques & Bowtell 2005), and so a sum
of six maps of the head, weighed as the main field lies to it. The scanner shims it to second order
where the brain lies at rest, and keeps the shims while the head moves: the field turns with the
head, and changes.

An echo-planar image conserves signal: what is displaced along the phase encoding is added up
where it is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import apply_affine
from scipy.fft import irfftn, rfftn

from eddymotion.images.grid import Grid, grid_points
from eddymotion.images.image import Image
from eddymotion.mapping.off_resonance import Readout
from eddymotion.simulation.acquisition import coil_sensitivity
from eddymotion.simulation.base import Head
from eddymotion.simulation.echo_planar import Distortion, pushed_means
from eddymotion.simulation.sampling import View
from eddymotion.simulation.synthetic import SyntheticHead
from eddymotion.wording import short_repr

__all__ = ["Distortion", "Magnetised", "OpposedPair", "echo_planar_image", "simulate_pair"]

SUSCEPTIBILITY = -9.4e-6
"""Of tissue less that of air."""

HERTZ_A_TESLA = 42.577478518e6

CUBE_MM = 384.0
"""In which the field is calculated: the head, the neck, and air around them."""

CUBE_CENTER_MM = np.array([0.0, 0.0, -20.0])

BOX_MM = np.array([[-100.0, 100.0], [-118.0, 112.0]])
"""Left and right, behind and before which all is air."""

TOP_MM = 100.0

SHIM_SCALE_MM = 80.0

PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Axes of the parts of a symmetric tensor."""


@dataclass(frozen=True, eq=False)
class Magnetised:
    """A head in a main field along z of the scanner.

    Parameters
    ----------
    head : SyntheticHead
    tesla : float
    strength : float
        Times the susceptibility of tissue.
    voxel_size : float
        Of the grid on which the field is calculated, mm.
    """

    head: SyntheticHead
    tesla: float = 3.0
    strength: float = 1.0
    voxel_size: float = 3.0

    __repr__ = short_repr

    @property
    def grid(self) -> Grid:
        """The cube."""
        n = round(CUBE_MM / self.voxel_size)
        affine = np.diag([self.voxel_size] * 3 + [1.0])
        affine[:3, 3] = CUBE_CENTER_MM - (n - 1) / 2 * self.voxel_size
        return Grid((n, n, n), affine)

    @cached_property
    def _matter(self) -> np.ndarray:
        """Share of each voxel that is no air."""
        grid = self.grid
        points = grid_points(grid.shape, grid.affine).reshape(*grid.shape, 3)
        near = (points[..., 2] < TOP_MM) & np.all(
            (points[..., :2] > BOX_MM[:, 0]) & (points[..., :2] < BOX_MM[:, 1]), axis=-1
        )
        matter = np.zeros(grid.shape, np.float32)
        matter[near] = self.head.matter_at(points[near])
        return matter

    @cached_property
    def _components(self) -> np.ndarray:
        """Matter filtered by kₐ k_b / k² for each of :data:`PAIRS`, (6, X, Y, Z) float32.

        A main field along the unit vector n magnetises it to Σ (δ_ab / 3 − nₐ n_b) of these.
        """
        n = self.grid.shape[0]
        frequencies = [np.fft.fftfreq(n), np.fft.fftfreq(n), np.fft.rfftfreq(n)]
        k = np.meshgrid(*frequencies, indexing="ij", sparse=True)
        square = sum(along**2 for along in k)
        square[0, 0, 0] = np.inf  # what is alike everywhere has no field
        spectrum = rfftn(self._matter) / square.astype(np.float32)
        return np.stack([
            irfftn(spectrum * (k[a] * k[b]).astype(np.float32), self.grid.shape) for a, b in PAIRS
        ])  # fmt: skip

    def unshimmed(self, pose: np.ndarray | None = None) -> Image:
        """Field (Hz) in the frame of the head, at a pose in the scanner (head → scanner)."""
        main = np.array([0.0, 0.0, 1.0]) if pose is None else pose[2, :3]  # as the head sees it
        tensor = np.eye(3) / 3 - np.outer(main, main)
        weights = [tensor[a, b] * (1 if a == b else 2) for a, b in PAIRS]
        scale = HERTZ_A_TESLA * self.tesla * self.strength * SUSCEPTIBILITY
        field = np.zeros(self.grid.shape, np.float32)
        for weight, component in zip(weights, self._components, strict=True):
            field += np.float32(scale * weight) * component
        return Image(field, self.grid.affine)

    @cached_property
    def shims(self) -> np.ndarray:
        """Weights (9,) of :func:`shim_terms`, set with the head at rest."""
        brain = apply_affine(self.head.affine, np.argwhere(self.head.brain)[::3])
        terms = shim_terms(brain)
        return np.linalg.lstsq(terms, self.unshimmed().spline.sample(brain), rcond=None)[0]

    def hertz(self, pose: np.ndarray | None = None) -> Image:
        """Field (Hz) in the frame of the head, shimmed for the head at rest.

        Parameters
        ----------
        pose : (4, 4) array, optional
            Head → scanner; at rest when not given.
        """
        field = self.unshimmed(pose)
        to_scanner = field.affine if pose is None else pose @ field.affine
        form = to_scanner.T @ shim_form(self.shims) @ to_scanner
        return Image(field.data - quadratic(form, field.data.shape), field.affine)

    def hertz_on(self, grid: Grid) -> np.ndarray:
        """Field (Hz) of the head at rest on a grid: (X, Y, Z) float32."""
        found = self.hertz().spline.sample(grid_points(grid.shape, grid.affine))
        return np.nan_to_num(found).reshape(grid.shape)

    def distortion(self, readout: Readout, *, changing: bool = True) -> Distortion:
        """Return what this does to the volumes of a scan.

        Parameters
        ----------
        readout : Readout
        changing : bool
            Whether the field changes as the head turns in the scanner, or only turns with it.
        """
        at_rest = self.hertz()
        return Distortion(self.hertz if changing else lambda pose: at_rest, readout)


def shim_terms(points: np.ndarray) -> np.ndarray:
    """Return spherical harmonics to second order at points (P, 3) of the scanner: (P, 9)."""
    x, y, z = points.T / SHIM_SCALE_MM
    ones = np.ones(len(points))
    return np.stack([ones, x, y, z, x * y, x * z, y * z, x * x - y * y,
                     2 * z * z - x * x - y * y], axis=1)  # fmt: skip


def shim_form(weights: np.ndarray) -> np.ndarray:
    """Return what :func:`shim_terms` so weighed (9,) are as a quadratic form of (x, y, z, 1)."""
    one, x, y, z, xy, xz, yz, across, along = weights
    twice = np.array([
        [2 * (across - along), xy, xz, x],
        [xy, -2 * (across + along), yz, y],
        [xz, yz, 4 * along, z],
        [x, y, z, 2 * one],
    ])  # fmt: skip
    units = np.diag([*[1 / SHIM_SCALE_MM] * 3, 1.0])
    return units @ twice @ units / 2


def quadratic(form: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Evaluate a quadratic form (4, 4) of (i, j, k, 1) at the voxels of a grid, float32."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    once = form[0, 0] * i**2 + form[1, 1] * j**2 + 2 * form[0, 1] * i * j + form[3, 3]
    once = once + 2 * (form[0, 3] * i + form[1, 3] * j)
    twice = 2 * (form[0, 2] * i + form[1, 2] * j + form[2, 3])
    values = twice.astype(np.float32) * k.astype(np.float32)
    values += once.astype(np.float32)
    values += (form[2, 2] * k**2).astype(np.float32)
    return values


def echo_planar_image(
    head: Head,
    grid: Grid,
    hertz: Image,
    readout: Readout,
    *,
    pose: np.ndarray | None = None,
    bval: float = 0.0,
    bvec: np.ndarray | None = None,
    snr: float | None = 20.0,
    coil_bias: float = 0.0,
    seed: int = 0,
) -> Image:
    """Scan one echo-planar image of a head with an off-resonance field.

    Parameters
    ----------
    head : Head
    grid : Grid
    hertz : Image
        The field in the frame of the head.
    readout : Readout
        Its direction is an axis of the grid.
    pose : (4, 4) array, optional
        Head → scanner, RAS+ mm.
    bval : float
        s/mm²
    bvec : (3,) array, optional
        RAS+ in the frame of the head.
    snr : float, optional
        As in :func:`eddymotion.simulation.acquire`.
    coil_bias : float
        See :func:`eddymotion.simulation.coil_sensitivity`.
    seed : int
        Of the noise.

    Returns
    -------
    Image
        On the grid, Rician unless `snr` is None.
    """
    pose = np.eye(4) if pose is None else pose
    direction = np.zeros(3) if bvec is None else bvec
    view = View(bval, direction, np.linalg.inv(pose))
    mean = pushed_means(head, view, grid, hertz, readout)
    mean = mean * coil_sensitivity(grid, coil_bias)
    if snr is not None:
        noise = np.random.default_rng(seed).normal(
            scale=head.white_signal / snr, size=(2, *mean.shape)
        )
        mean = np.hypot(mean + noise[0], noise[1])
    return Image(mean.astype(np.float32), grid.affine)


@dataclass(frozen=True, eq=False)
class OpposedPair:
    """Two images of opposite polarity, and the truth.

    Parameters
    ----------
    images : pair of Image
    readouts : pair of Readout
    hertz : Image
        The field in the frame of the head, which is that of the first image.
    pose : (4, 4) array
        First image → second, RAS+ mm.
    brain : (X, Y, Z) bool array
        On the grid of the images.
    """

    images: tuple[Image, Image]
    readouts: tuple[Readout, Readout]
    hertz: Image
    pose: np.ndarray
    brain: np.ndarray

    __repr__ = short_repr

    def truth_on_grid(self) -> np.ndarray:
        """Return the true field on the grid of the first image, (X, Y, Z) Hz."""
        image = self.images[0]
        found = self.hertz.spline.sample(grid_points(image.data.shape, image.affine))
        return np.nan_to_num(found).reshape(image.data.shape)


def simulate_pair(
    magnetised: Magnetised,
    grid: Grid,
    *,
    axis: str = "j",
    readout_time: float = 0.045,
    pose: np.ndarray | None = None,
    changing: bool = False,
    snr: float | None = 20.0,
    coil_bias: float = 0.13,
    seed: int = 0,
) -> OpposedPair:
    """Scan a head twice with opposite polarity.

    Parameters
    ----------
    magnetised : Magnetised
        Strength 0 for no field.
    grid : Grid
    axis : {"i", "j", "k"}
        Of the phase encoding; the first image has the negative polarity.
    readout_time : float
        s
    pose : (4, 4) array, optional
        Of the second image, RAS+ mm.
    changing : bool
        Whether the field changes as the head turns in the scanner, or only turns with it.
    snr, coil_bias, seed
        As in :func:`echo_planar_image`.

    Returns
    -------
    OpposedPair
    """
    pose = np.eye(4) if pose is None else pose
    field = magnetised.hertz()
    there = magnetised.hertz(pose) if changing else field
    readouts = (Readout.of(grid.affine, axis + "-", readout_time),
                Readout.of(grid.affine, axis, readout_time))  # fmt: skip
    first, second = (
        echo_planar_image(magnetised.head, grid, hertz, readout, pose=at, snr=snr,
                          coil_bias=coil_bias, seed=2 * seed + number)
        for number, (hertz, readout, at) in enumerate(
            zip((field, there), readouts, (np.eye(4), pose), strict=True))
    )  # fmt: skip
    head = magnetised.head
    to_head = np.linalg.inv(head.affine) @ grid.affine
    at = grid_points(grid.shape, to_head).round().astype(int)
    inside = ((at >= 0) & (at < head.shape)).all(axis=1)
    brain = np.zeros(len(at), bool)
    brain[inside] = head.brain[tuple(at[inside].T)]
    return OpposedPair((first, second), readouts, field, pose, brain.reshape(grid.shape))

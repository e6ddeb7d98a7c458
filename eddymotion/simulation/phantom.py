# SPDX-License-Identifier: Apache-2.0
"""A head to simulate: tissue fractions, fibre directions, and the signal they give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.io.images import read_image
from eddymotion.wording import short_repr

S0 = np.array([700.0, 850.0, 1500.0])
"""T2-weighted b=0 signal of white matter, grey matter and fluid, arbitrary units."""

INTRA_AXONAL_FRACTION = 0.55
STICK_DIFFUSIVITY = 2.0e-3
EXTRA_PARALLEL, EXTRA_PERPENDICULAR = 1.7e-3, 0.5e-3
ISOTROPIC_WM = 0.7e-3
GREY_FAST, GREY_SLOW, GREY_SLOW_FRACTION = 1.0e-3, 0.3e-3, 0.3
FLUID = 3.0e-3
"""Diffusivities in mm²/s, of the order of in-vivo measurements (Panagiotaki et al. 2012)."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """Tissue fractions and fibre directions on a grid.

    Parameters
    ----------
    tissue : (X, Y, Z, 3) array
        Fractions of white matter, grey matter and fluid, 0 … 1.
    fibres : (X, Y, Z, 3, 3) array
        Three fibre directions in RAS+ (last axis), their lengths the share of white matter.
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    """

    tissue: np.ndarray
    fibres: np.ndarray
    affine: np.ndarray

    __repr__ = short_repr

    @classmethod
    def from_files(cls, tissue: str | Path, peaks: str | Path) -> Phantom:
        """Read NIfTI maps.

        Parameters
        ----------
        tissue : path
            Fractions of white matter, grey matter and fluid, (X, Y, Z, 3): 0 … 1, or as integers
            times 250.
        peaks : path
            Three fibre directions in RAS+, their lengths the share of white matter, (X, Y, Z, 9):
            or as integers times 127.

        Raises
        ------
        EddymotionError
            If one cannot be read, or the two do not belong together.
        """
        fractions, affine = _read_map(tissue, 3, 250, "white matter, grey matter and fluid")
        fibres, other = _read_map(peaks, 9, 127, "three fibre directions")
        if fractions.shape[:3] != fibres.shape[:3] or not np.allclose(affine, other, atol=1e-3):
            raise EddymotionError(
                f"{peaks}: does not lie on the grid of {tissue}; give maps of one phantom"
            )
        return cls(fractions, fibres.reshape(*fibres.shape[:3], 3, 3), affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        x, y, z = self.tissue.shape[:3]
        return x, y, z

    @cached_property
    def white_signal(self) -> float:
        """Mean b=0 signal where there is little but white matter."""
        pure = self.tissue[..., 0] > 0.9
        return self.signal(0.0, np.zeros(3))[pure if pure.any() else self.brain].mean()

    @property
    def brain(self) -> np.ndarray:
        """Where there is white or grey matter, (X, Y, Z) bool."""
        return self.tissue[..., :2].sum(axis=3) > 0.5

    @cached_property
    def _filled(self) -> np.ndarray:
        return self.tissue.sum(axis=3) > 0.01

    def signal(self, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal with a gradient in the head's frame.

        White matter is a stick and a zeppelin along each fibre (Panagiotaki et al. 2012) and an
        isotropic rest; grey matter decays bi-exponentially, fluid freely.

        Parameters
        ----------
        bval : float
            s/mm²
        bvec : (3,) array
            RAS+ in the head's frame; unit length, or zero for b=0.

        Returns
        -------
        (X, Y, Z) float32 array
        """
        tissue = self.tissue[self._filled] * S0
        fibres = self.fibres[self._filled]
        weights = np.linalg.norm(fibres, axis=2)
        along = np.divide(fibres @ np.asarray(bvec, np.float32), weights, where=weights > 1e-3,
                          out=np.zeros_like(weights)) ** 2  # fmt: skip
        stick = np.exp(-bval * STICK_DIFFUSIVITY * along)
        zeppelin = np.exp(
            -bval * (EXTRA_PERPENDICULAR + (EXTRA_PARALLEL - EXTRA_PERPENDICULAR) * along)
        )
        bundle = INTRA_AXONAL_FRACTION * stick + (1 - INTRA_AXONAL_FRACTION) * zeppelin
        rest = np.clip(1 - weights.sum(axis=1), 0, None)
        white = (weights * bundle).sum(axis=1) + rest * np.exp(-bval * ISOTROPIC_WM)
        grey = GREY_SLOW_FRACTION * np.exp(-bval * GREY_SLOW)
        grey += (1 - GREY_SLOW_FRACTION) * np.exp(-bval * GREY_FAST)
        volume = np.zeros(self._filled.shape, np.float32)
        volume[self._filled] = (
            tissue[:, 0] * white + tissue[:, 1] * grey + tissue[:, 2] * np.exp(-bval * FLUID)
        )
        return volume


def _read_map(
    path: str | Path, n_maps: int, scale: float, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read a 4-D map, undo the scale of integers; return its affine, too."""
    data, affine, header = read_image(Path(path))
    if data.ndim != 4 or data.shape[3] != n_maps:
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape}, expected (x, y, z, {n_maps}): {what}"
        )
    whole_numbers = header.get_data_dtype().kind in "iu"
    return data / np.float32(scale) if whole_numbers else data, affine


def procedural_head(voxel_size: float = 2.0) -> Phantom:
    """Build a head from formulas: no download, any resolution.

    An ellipsoidal brain with sulci, ventricles and deep grey nuclei, not symmetric, and
    three crossing bundles: a callosum that arcs from side to side, projections that fan upwards,
    and association fibres that run from front to back.

    Parameters
    ----------
    voxel_size : float
        mm, isotropic.

    Returns
    -------
    Phantom
        Centred on the origin of RAS+.
    """
    half = np.array([80.0, 96.0, 74.0])
    shape = np.ceil(2 * half / voxel_size).astype(int)
    affine = np.diag([voxel_size] * 3 + [1.0])
    affine[:3, 3] = -(shape - 1) * voxel_size / 2
    x, y, z = (
        affine[axis, 3] + voxel_size * np.arange(shape[axis], dtype=np.float32)
        for axis in range(3)
    )
    x, y, z = np.meshgrid(x, y, z, indexing="ij")
    tissue = _tissue(x, y, z)
    return Phantom(tissue, _fibres(x, y, z), affine)


def _ellipsoid(x, y, z, center, axes):
    """Soft ellipsoid: 1 inside, 0 outside, with an edge of about a millimetre."""
    (cx, cy, cz), (ax, ay, az) = center, axes
    radius = np.sqrt(((x - cx) / ax) ** 2 + ((y - cy) / ay) ** 2 + ((z - cz) / az) ** 2)
    return _step((1 - radius) * min(axes) / 1.2)


def _step(t):
    return (0.5 * (1 + np.tanh(t))).astype(np.float32)


def _tissue(x, y, z):
    radius = np.sqrt((x / 67) ** 2 + (y / 83) ** 2 + ((z - 2) / 60) ** 2) + 1e-6
    depth = (1 - radius) * 65  # mm below the inside of the skull
    to_sulcus = np.minimum(_distance_to_sheets(x, y, z), np.where(z > 16, np.abs(x), 99.0))
    below_sulci = _step((depth - 18) / 1.5)
    white = _step((depth - 6) / 1.0) * np.maximum(_step((to_sulcus - 3.4) / 0.8), below_sulci)
    pia = _step((depth - 2.5) / 1.0) * np.maximum(_step((to_sulcus - 0.9) / 0.6), below_sulci)
    skull_side = _step(depth / 1.0)
    ventricles = np.maximum(
        _ellipsoid(x, y, z, (-11, 4, 10), (6, 28, 7)), _ellipsoid(x, y, z, (11, 2, 10), (7, 26, 8))
    )
    nuclei = np.maximum(
        _ellipsoid(x, y, z, (-16, -8, -3), (9, 14, 9)),
        _ellipsoid(x, y, z, (17, -7, -2), (9, 13, 9)),
    )
    asymmetric = _ellipsoid(x, y, z, (30, 34, 16), (9, 8, 7))
    wm = white * (1 - ventricles) * (1 - nuclei) * (1 - 0.8 * asymmetric)
    csf = np.clip(skull_side - pia, 0, 1) + pia * white * ventricles
    gm = np.clip(skull_side - wm - csf, 0, 1)
    return np.stack([wm, gm, csf], axis=-1)


def _distance_to_sheets(x, y, z):
    """Distance (mm, roughly) to the sheets of a gyroid, bent: the sulci."""
    turn = 2 * np.pi / 44.0
    u, v, w = turn * (x + 0.12 * y), turn * (y - 0.1 * z), turn * (z + 0.15 * x)
    gyroid = np.sin(u) * np.cos(v) + np.sin(v) * np.cos(w) + np.sin(w) * np.cos(u)
    return np.abs(gyroid) / turn * 0.75


def _fibres(x, y, z):
    def unit(*components):
        stacked = np.stack(np.broadcast_arrays(*components), axis=-1).astype(np.float32)
        return stacked / np.linalg.norm(stacked, axis=-1, keepdims=True)

    arc = np.clip(x / 60, -1, 1) * np.deg2rad(75)
    callosum = unit(np.cos(arc), 0 * x, np.sin(arc))
    projection = unit(x, 0.4 * y, z + 95)
    bend = np.sign(x) * np.tanh(y / 40)
    association = unit(0.25 * bend, np.ones_like(x), -0.3 * np.tanh(y / 50))
    weights = np.stack(
        [
            np.exp(-(((z - 22) / 22) ** 2) - (y / 60) ** 2),
            np.exp(-(((np.abs(x) - 24) / 14) ** 2) - ((y + 8) / 34) ** 2),
            np.exp(-(((np.abs(x) - 34) / 13) ** 2) - ((z - 6) / 26) ** 2),
        ],
        axis=-1,
    ).astype(np.float32)
    shares = 0.9 * weights / np.maximum(weights.sum(axis=-1, keepdims=True), 0.6)
    directions = np.stack([callosum, projection, association], axis=-2)
    return directions * shares[..., None]

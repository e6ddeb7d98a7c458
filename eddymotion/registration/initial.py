# SPDX-License-Identifier: Apache-2.0
"""Where to start: before any engine, for images that are far apart.

``header``
    The identity: the files' own world coordinates.
``mass``
    The middles of what the images show are laid on each other.
``axes``
    The principal axes, too. An axis has no sign: of the four proper choices the one with the
    highest mutual information is taken.
``multi``
    All of these, and turns by all angles about the middles, are scored on coarse images; the best
    few are registered coarsely, and the best of them is the start.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import scipy
from nibabel.affines import apply_affine, from_matvec

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.images.pyramid import MIN_POINTS, Level, band_pass, head_scale, jittered_points
from eddymotion.registration.checks import inside_grid, nearest_of
from eddymotion.registration.gauss_newton import GaussNewton
from eddymotion.registration.metrics import Information, Windows
from eddymotion.registration.problem import bright, head_of
from eddymotion.wording import shown

METHODS = ("header", "mass", "axes", "multi")

LOOK = Level(12.0, 2_000)
"""At which starts are scored."""

CLOSE_LOOK = Level(4.0, 8_000)
"""Resolution once they are registered: only details distinguish front from back."""

N_BINS = 16
"""Of the histogram that scores them."""

N_TURNS = 800
"""Rotations, evenly over all there are: neighbours are about 25° apart."""

N_REFINED = 10
"""Starts that are registered."""

APART = 25.0
"""Degrees between them at least."""

REFINING = (Level(16.0, 2_000), Level(8.0, 4_000), Level(4.0, 8_000))

MIN_SHARE = 0.25
"""Of the points of the fixed image: a start that shows less in common is not considered."""


def initial_transform(
    fixed: Image,
    moving: Image,
    method: str,
    *,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Find a rigid start.

    Parameters
    ----------
    fixed, moving : Image
        On any grids.
    method : {"header", "mass", "axes", "multi"}
    fixed_mask, moving_mask : (X, Y, Z) bool array, optional
        Where an image counts.
    seed : int
        Of the points at which starts are scored.

    Returns
    -------
    (4, 4) array
        Fixed → moving, RAS+ mm.

    Raises
    ------
    EddymotionError
        If the method is unknown.
    """
    if method not in METHODS:
        raise EddymotionError(
            f"initial transform {shown(method)} is unknown; {nearest_of(method, METHODS)}"
            f"use one of {', '.join(METHODS)}"
        )
    if method == "header":
        return np.eye(4)
    here, there = _Body.of(fixed, fixed_mask), _Body.of(moving, moving_mask)
    if method == "mass":
        return _about(np.eye(3), here, there)
    turns = principal_turns(here.axes, there.axes)
    score = _Score.of(fixed, moving, here.mask, moving_mask, seed, LOOK)
    if method == "axes":
        return max((_about(turn, here, there) for turn in turns), key=score)
    by_mass, *turned = (_about(turn, here, there)
                        for turn in (np.eye(3), *turns, *even_rotations(N_TURNS)))  # fmt: skip
    promising = sorted((np.eye(4), by_mass, *turned), key=score, reverse=True)
    engine, found = GaussNewton(levels=REFINING, symmetric=False), [np.eye(4)]
    for start in (*apart(promising, APART)[:N_REFINED], by_mass):
        with suppress(EddymotionError):  # this start has nothing in common
            refined = engine.register(
                fixed, moving, metric="nmi", fixed_mask=here.mask,
                moving_mask=moving_mask, init=start, seed=seed,
            )  # fmt: skip
            found.append(refined.matrix)
    return max(found, key=_Score.of(fixed, moving, here.mask, moving_mask, seed, CLOSE_LOOK))


def apart(matrices: list[np.ndarray], degrees: float) -> list[np.ndarray]:
    """Leave out matrices whose rotation is near that of one before."""
    kept: list[np.ndarray] = []
    for matrix in matrices:
        cosines = [(np.trace(matrix[:3, :3].T @ other[:3, :3]) - 1) / 2 for other in kept]
        if not kept or max(cosines) < np.cos(np.deg2rad(degrees)):
            kept.append(matrix)
    return kept


@dataclass(frozen=True, eq=False)
class _Body:
    """What an image shows: where its middle is and how it extends.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    center : (3,) array
        RAS+ mm.
    axes : (3, 3) array
        Principal axes in columns, the longest first; right-handed.
    """

    mask: np.ndarray
    center: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, image: Image, mask: np.ndarray | None) -> _Body:
        """Use the mask, or what is brighter than the rest."""
        where = bright(image) if mask is None else np.asarray(mask, bool)
        if where.sum() < MIN_POINTS:
            where = np.ones(image.data.shape, bool)
        points = apply_affine(image.affine, np.argwhere(where))
        center = points.mean(axis=0)
        covariance = np.cov((points - center).T)
        axes = np.linalg.eigh(covariance)[1][:, ::-1]
        axes[:, 2] *= np.sign(np.linalg.det(axes))
        return cls(head_of(image, mask) if mask is None else where, center, axes)


def principal_turns(fixed_axes: np.ndarray, moving_axes: np.ndarray) -> np.ndarray:
    """Return the four rotations that lay principal axes on each other, (4, 3, 3)."""
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return np.einsum("ik,sk,jk->sij", moving_axes, signs, fixed_axes)


def even_rotations(n: int) -> np.ndarray:
    """Return `n` rotations that are spread evenly over all, (n, 3, 3).

    References
    ----------
    Alexa (2022), Super-Fibonacci spirals, CVPR, 8291.
    """
    s = np.arange(n) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    a, b = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    spiral = [inner * np.sin(a), inner * np.cos(a), outer * np.sin(b), outer * np.cos(b)]
    return scipy.spatial.transform.Rotation.from_quat(np.stack(spiral, axis=1)).as_matrix()


def _about(rotation: np.ndarray, fixed: _Body, moving: _Body) -> np.ndarray:
    """Turn about the middle of the fixed body, and lay it on that of the moving one."""
    return from_matvec(rotation, moving.center - rotation @ fixed.center)


@dataclass(frozen=True, eq=False)
class _Score:
    """Normalised mutual information of coarse images at a start; higher is better."""

    points: np.ndarray
    weights: np.ndarray
    moving: Image
    region: Image | None
    windows: Windows

    @classmethod
    def of(
        cls,
        fixed: Image,
        moving: Image,
        mask: np.ndarray,
        moving_mask: np.ndarray | None,
        seed: int,
        look: Level,
    ) -> _Score:
        scale = head_scale(mask, fixed.voxel_sizes)
        random = np.random.default_rng(seed)
        points = jittered_points(mask, fixed.affine, look.n_points, random)
        values = band_pass(fixed, look, scale).spline.sample(points)
        known = np.isfinite(values)
        windows = Windows.over(values[known], N_BINS)
        shown = band_pass(moving, look, scale)
        region = None if moving_mask is None else Image(np.asarray(moving_mask), moving.affine)
        return cls(
            points[known], windows.weights(values[known]), shown, region,
            Windows.over(shown.data, N_BINS),
        )  # fmt: skip

    def __call__(self, matrix: np.ndarray) -> float:
        moved = self.moving.spline.sample(self.points, matrix)
        inside = np.isfinite(moved)
        if self.region is not None:
            mapped = apply_affine(matrix, self.points)
            inside &= inside_grid(mapped, self.region, self.region.data)
        if inside.sum() < MIN_SHARE * len(inside):
            return -np.inf
        joint = self.weights[inside].T @ self.windows.weights(moved[inside]) / inside.sum()
        return Information.of(joint).normalised

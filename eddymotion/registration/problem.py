# SPDX-License-Identifier: Apache-2.0
"""A pair of images at a level: the cost at a matrix, and how it changes from there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.images.grid import mask_center
from eddymotion.images.image import Image
from eddymotion.images.pyramid import MIN_POINTS, Level, band_pass, head_scale, low_pass
from eddymotion.registration.checks import inside_grid
from eddymotion.registration.groups import Group
from eddymotion.registration.metrics import CLUSTER_SIZE, Expansion, Fit, build_fit, draw_points

MAX_OVERSAMPLING = 8.0
"""Where only one image has a mask, the other gets more points, up to this factor: most of them
have no counterpart within that mask."""


RIM_VOXELS = 3
"""Around what an image shows, that its edge be seen from both sides."""

TAILS = (0.01, 0.99)
"""Quantiles beyond which values say nothing about a threshold."""

MAX_MOVE = 4.0
"""Widths (FWHM) of the level by which a point moves at most while it is solved."""


def foreground(image: Image) -> np.ndarray:
    """Where an image shows something, and a rim around it: (X, Y, Z) bool.

    What lies above half of Otsu's threshold, its holes filled: around a scanned head the air is
    mere noise. An image that cannot be split is taken whole.
    """
    from scipy.ndimage import binary_dilation, binary_fill_holes

    where = bright(image, 0.5)
    if where.sum() < MIN_POINTS:
        return np.ones(image.data.shape, bool)
    return binary_fill_holes(binary_dilation(where, iterations=RIM_VOXELS))


def head_of(image: Image, mask: np.ndarray | None) -> np.ndarray:
    """Where an image counts: its mask, or its :func:`foreground`; (X, Y, Z) bool."""
    return foreground(image) if mask is None else np.asarray(mask, bool)


def bright(image: Image, share: float = 1.0) -> np.ndarray:
    """Where an image is above a share of Otsu's threshold, from its darkest on: (X, Y, Z) bool."""
    from dipy.segment.threshold import otsu

    data = np.asarray(image.data, np.float32)
    low, high = np.quantile(data[::2, ::2, ::2], TAILS)
    if not high > low:
        low, high = data.min(), data.max()
    threshold = otsu(np.clip(data, low, high))
    return data > low + share * (threshold - low)


@dataclass(frozen=True, eq=False)
class Side:
    """One image of a pair, as the reference: where its points are drawn.

    Parameters
    ----------
    image : Image
    given : (X, Y, Z) array, optional
        Where the image counts.
    """

    image: Image
    given: np.ndarray | None

    @property
    def stated(self) -> bool:
        """Whether a mask was given: then nothing else counts."""
        return self.given is not None

    @cached_property
    def mask(self) -> Image:
        """Where the points are, bool."""
        return Image(head_of(self.image, self.given), self.image.affine)

    @cached_property
    def center(self) -> np.ndarray:
        """Middle of the mask, RAS+ mm."""
        return mask_center(self.mask.data, self.mask.affine)

    @cached_property
    def scale(self) -> float:
        """Size relative to a human brain."""
        return head_scale(self.mask.data, self.mask.voxel_sizes)

    @property
    def voxel(self) -> float:
        """Edge of a cube as large as a voxel, mm."""
        return float(np.cbrt(np.prod(self.image.voxel_sizes)))

    def counts(self, points: np.ndarray) -> np.ndarray:
        """Whether points (P, 3), RAS+ mm, lie in the mask; everywhere where none was given."""
        if not self.stated:
            return np.ones(len(points), bool)
        return inside_grid(points, self.mask, self.mask.data)

    def is_near(self, points: np.ndarray, margin: float) -> np.ndarray:
        """Whether points (P, 3) lie in the box around the mask, `margin` mm wider."""
        inside = np.argwhere(self.mask.data)
        wide = margin / self.mask.voxel_sizes
        voxels = apply_affine(np.linalg.inv(self.mask.affine), points)
        low, high = inside.min(axis=0) - wide, inside.max(axis=0) + wide
        return ((voxels >= low) & (voxels <= high)).all(axis=1)

    def oversampling(self, other: Side) -> float:
        """How many times more points are needed, since only the other's mask is stated."""
        if self.stated or not other.stated:
            return 1.0
        return float(np.clip((self.scale / other.scale) ** 3, 1.0, MAX_OVERSAMPLING))


@dataclass(frozen=True, eq=False)
class Pair:
    """Both images.

    Parameters
    ----------
    fixed, moving : Side
    metric : str
    symmetric : bool
        Whether points of the moving image are compared, too.
    """

    fixed: Side
    moving: Side
    metric: str
    symmetric: bool

    @property
    def voxel(self) -> float:
        """Size of the smaller voxel, mm."""
        return min(self.fixed.voxel, self.moving.voxel)

    def at(self, level: Level, group: Group, matrix: np.ndarray, seed: tuple[int, ...]) -> Problem:
        """Show the pair at a level, which starts from `matrix` (fixed → moving).

        The points depend on the image, not on its role.
        """
        scale = self.fixed.scale
        if self.symmetric:
            scale = min(scale, self.moving.scale)
        voxel = max(self.fixed.voxel, self.moving.voxel)
        view = LevelView(self.metric, level, scale, voxel, group)
        fixed, moving = view.show(self.fixed.image), view.show(self.moving.image)
        there = Direction.of((self.fixed, fixed), (self.moving, moving), view, matrix, seed)
        if not self.symmetric:
            return Problem(view, there, None)
        matrix = np.linalg.inv(matrix)
        back = Direction.of((self.moving, moving), (self.fixed, fixed), view, matrix, seed)
        return Problem(view, there, back)


@dataclass(frozen=True, eq=False)
class LevelView:
    """How a pair is compared at a level.

    Parameters
    ----------
    metric : str
    level : Level
    scale : float
        Of the level, where its widths are in mm.
    voxel : float
        mm, where its widths are in voxels.
    group : Group
        Kind of steps.
    """

    metric: str
    level: Level
    scale: float
    voxel: float
    group: Group

    @property
    def width(self) -> float:
        """FWHM of the smoothing, mm."""
        return self.level.fwhm * (self.scale if self.level.highpass is None else self.voxel)

    def show(self, image: Image) -> Image:
        """Filter an image, both of a pair alike."""
        if self.level.highpass is None:
            return band_pass(image, self.level, self.scale)
        narrow = low_pass(image, self.width)
        if self.metric != "ssd":
            return narrow
        wide = low_pass(image, self.level.highpass * self.voxel)
        return Image(narrow.data - wide.data, image.affine)


@dataclass(frozen=True, eq=False)
class Direction:
    """One level, one image as the reference: everything about it is computed once.

    Parameters
    ----------
    points : (P, 3) array
        Of the reference, RAS+ mm.
    center : (3,) array
        Of the steps.
    fit : Fit, optional
        None where too little of the reference is to be seen.
    target : Side
    moving : Image
        What the level shows of the target.
    """

    points: np.ndarray
    center: np.ndarray
    fit: Fit | None
    target: Side
    moving: Image

    @classmethod
    def of(
        cls,
        reference: tuple[Side, Image],
        other: tuple[Side, Image],
        view: LevelView,
        matrix: np.ndarray,
        seed: tuple[int, ...],
    ) -> Direction:
        """Draw points of the reference and read them; `matrix` is where the level starts.

        Each image comes with what the level shows of it.
        """
        (side, shown), (target, moving) = reference, other
        more = side.oversampling(target)
        n_points, mask = int(view.level.n_points * more), side.mask
        random = np.random.default_rng(seed)
        points = draw_points(view.metric, mask.data, mask.affine, n_points, view.width, random)
        if more > 1:
            size = CLUSTER_SIZE if view.metric == "lncc" else 1
            near = target.is_near(apply_affine(matrix, points), MAX_MOVE * view.width)
            points = points[np.repeat(near.reshape(-1, size).any(axis=1), size)]
        values, slopes = shown.spline.sample_with_gradient(points)
        usable = np.isfinite(values)
        if view.metric == "lncc":  # whole clusters stay
            usable &= side.counts(points)
            values = np.where(usable, values, np.nan)
        else:
            points, values, slopes = points[usable], values[usable], slopes[usable]
        columns = -view.group.columns(points - side.center, slopes)
        enough = usable.sum() >= MIN_POINTS
        fit = build_fit(view.metric, values, columns, moving.data) if enough else None
        return cls(points, side.center, fit, target, moving)

    @property
    def radius(self) -> float:
        """RMS distance of the points from the centre, mm."""
        return float(np.sqrt(((self.points - self.center) ** 2).sum(axis=1).mean()))

    def evaluate(self, matrix: np.ndarray) -> Expansion | None:
        """Evaluate the metric at `matrix`, points of the reference → target."""
        if self.fit is None:
            return None
        moved = self.moving.spline.sample(self.points, matrix)
        if self.target.stated:
            moved[~self.target.counts(apply_affine(matrix, self.points))] = np.nan
        if np.isfinite(moved).sum() < MIN_POINTS:
            return None
        try:
            return self.fit.evaluate(moved)
        except np.linalg.LinAlgError:  # nothing to see at this level
            return None


@dataclass(frozen=True, eq=False)
class Problem:
    """One level of a pair, in one direction or both: an objective of the matrix."""

    view: LevelView
    there: Direction
    back: Direction | None

    @property
    def slack(self) -> float:
        """Rise of the cost that still counts as progress."""
        return self.there.fit.slack if self.there.fit else 0.0

    def length(self, matrix: np.ndarray, parameters: np.ndarray) -> float:
        """How far a step from `matrix` moves the points, mm; the same with images exchanged."""
        there = self.view.group.length(parameters, self.there.radius)
        if self.back is None:
            return there
        reversed_step = self._turn(matrix) @ parameters
        return (there + self.view.group.length(reversed_step, self.back.radius)) / 2

    def moved(self, matrix: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Take a step."""
        return matrix @ self.view.group.exp(parameters, self.there.center)

    def evaluate(self, matrix: np.ndarray) -> Expansion | None:
        """Expand the cost at `matrix`; None where the images do not overlap enough."""
        there = self.there.evaluate(matrix)
        if self.back is None or there is None:
            return there
        back = self.back.evaluate(np.linalg.inv(matrix))
        if back is None:
            return None
        turn = self._turn(matrix)
        return Expansion(
            (there.cost + back.cost) / 2,
            there.n_points + back.n_points,
            (there.hessian + turn.T @ back.hessian @ turn) / 2,
            (there.slope + turn.T @ back.slope) / 2,
        )

    def _turn(self, matrix: np.ndarray) -> np.ndarray:
        assert self.back is not None
        return self.view.group.reversal(matrix, self.there.center, self.back.center)

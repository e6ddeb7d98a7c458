# SPDX-License-Identifier: Apache-2.0
"""Least squares at one level of resolution: the cost, its priors, and the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.estimation.off_resonance.images import SAME_SHIFT, Distorted
from eddymotion.estimation.off_resonance.shading import gain_spreads, shading_terms
from eddymotion.estimation.off_resonance.view import FieldState, FieldView
from eddymotion.images.grid import all_points, mask_center
from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import smooth
from eddymotion.images.lattice import Lattice, separable
from eddymotion.images.pyramid import FWHM_TO_SIGMA
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.mapping.rigid import exp_rigid

MARGIN_VOXELS = 4
"""Around the brain, on which the lattice lies."""

RIM_VOXELS = 2
"""Around the brain, which is compared as well: its edge shows most of the field."""

GAUGE_MM = 0.1
"""How far the held part of the poses may go."""

PRIOR_SHARE = 0.01
"""Weight of these priors at one standard deviation: that of this part of the brain."""

MEDIAN_OF_CHI_SQUARE = 0.455
"""With one degree of freedom."""

LEAST_NOISE = 0.005
"""Relative to the images' own brightness: they agree no better than their interpolation."""


@dataclass(frozen=True)
class FieldLevel:
    """One step from coarse to fine.

    Parameters
    ----------
    fwhm : float
        Of the Gaussian that smooths the images, mm.
    spacing : float
        Of the points that are compared, mm, to the nearest number of voxels.
    knots : float
        Of the field, mm.
    stiffness : float
        Relative to that of the finest level.
    steps : int
        At most.
    """

    fwhm: float
    spacing: float
    knots: float
    stiffness: float
    steps: int


LEVELS = (
    FieldLevel(8.0, 5.0, 20.0, 0.1, 8),
    FieldLevel(5.0, 5.0, 14.0, 0.1, 8),
    FieldLevel(3.0, 5.0, 10.0, 0.3, 6),
    FieldLevel(1.5, 2.0, 7.0, 1.0, 4),
    FieldLevel(0.0, 2.0, 5.0, 1.0, 4),
)


@dataclass(frozen=True, eq=False)
class FieldProblem:
    """Least squares at one level.

    Parameters
    ----------
    images : sequence of Distorted
    splines : sequence of Spline
        The images, smoothed and scaled.
    lattice : Lattice
    matrices : list of matrices
        Of the field and of its derivatives by mm along the three axes of the lattice.
    points : (P, 3) array
        At which images are compared, RAS+ mm of the reference frame.
    counts : (X, Y, Z) bool array
        Which points of the grid these are.
    volume : float
        Of a point, mm³.
    stiffness : float
    start : (K, 4, 4) array
    center : (3,) array
        About which heads turn, RAS+ mm.
    shading : (G, P) array
        Terms of the logarithms of gains at the points; see :func:`shading_terms`.
    """

    images: Sequence[Distorted]
    splines: Sequence[Spline]
    lattice: Lattice
    matrices: Sequence[Sequence[np.ndarray]]
    points: np.ndarray
    counts: np.ndarray
    volume: float
    stiffness: float
    start: np.ndarray
    center: np.ndarray
    shading: np.ndarray

    @classmethod
    def at(
        cls,
        level: FieldLevel,
        images: Sequence[Distorted],
        shown: Sequence[Image],
        brain: np.ndarray,
        start: np.ndarray,
        stiffness: float,
        n_shades: int = 1,
    ) -> FieldProblem:
        """Lay lattice and points over the brain, and smooth the images."""
        reference = images[0].image
        low, high = _box(brain, MARGIN_VOXELS)
        affine = reference.affine.copy()
        affine[:3, 3] = apply_affine(affine, low)
        size = high - low
        lattice = Lattice.covering(size, affine, level.knots)
        every = np.maximum(np.round(level.spacing / reference.voxel_sizes), 1).astype(int)
        at = [np.arange((n - 1) % step // 2, n, step) for n, step in zip(size, every, strict=True)]
        in_lattice = np.linalg.inv(lattice.affine) @ affine  # diagonal: the same axes
        positions = [in_lattice[axis, axis] * at[axis] + in_lattice[axis, 3] for axis in range(3)]
        matrices = [_floats(lattice.matrices(positions))]
        for axis in range(3):
            orders = [int(other == axis) for other in range(3)]
            by_mm = lattice.matrices(positions, orders)
            by_mm[axis] = by_mm[axis] / lattice.spacing[axis]
            matrices.append(_floats(by_mm))
        grown = scipy.ndimage.binary_dilation(brain, iterations=RIM_VOXELS)
        counts = grown[np.ix_(*(low_axis + on for low_axis, on in zip(low, at, strict=True)))]
        voxels = all_points(at)[counts.ravel()] + low
        points, center = (
            apply_affine(reference.affine, voxels),
            mask_center(brain, reference.affine),
        )
        return cls(
            images,
            [Spline.of(_smoothed(image, level.fwhm)) for image in shown],
            lattice,
            matrices,
            points,
            counts,
            float(np.prod(reference.voxel_sizes * every)),
            stiffness,
            start,
            center,
            shading_terms(points, center, n_shades),
        )

    @cached_property
    def to_axes(self) -> np.ndarray:
        """Derivatives by mm along the axes of the lattice → along RAS+, by product from right."""
        return np.linalg.inv(self.lattice.affine)[:3, :3] * self.lattice.spacing[:, None]

    @cached_property
    def prior_weight(self) -> float:
        """Of a prior at one standard deviation, in units of the cost."""
        return PRIOR_SHARE * self.volume * len(self.points)

    def taking_over(self, state: FieldState, field: OffResonance | None) -> FieldState:
        """Bring a field onto this lattice."""
        if field is None:
            return FieldState(np.zeros(self.lattice.shape, np.float32), state.poses, state.gains)
        taken = field.coefficients_on(self.lattice)
        return FieldState(taken.astype(np.float32), state.poses, state.gains)

    def field_of(self, state: FieldState) -> np.ndarray:
        """Return the coefficients of the field, in double precision."""
        return state.coefficients.astype(float)

    def view(self, state: FieldState) -> FieldView:
        """Correct the images at a state."""
        hertz, *along = (separable(m, state.coefficients)[self.counts] for m in self.matrices)
        slopes = np.stack(along, axis=1) @ self.to_axes.astype(np.float32)
        away = (self.points - self.center).astype(np.float32)
        values, seen, by_field, by_slope, shifts, by_pose = [], [], [], [], [], []
        for number, (one, spline, pose) in enumerate(
            zip(self.images, self.splines, state.poses, strict=True)
        ):
            gain = np.exp(state.gains[number].astype(np.float32) @ self.shading)
            readout = one.readout
            recorded = apply_affine(pose, self.points) + hertz[:, None] * readout.shift
            found, gradient = spline.sample_with_gradient(recorded)
            inside = np.isfinite(found)
            found, gradient = np.nan_to_num(found) * gain, np.nan_to_num(gradient) * gain[:, None]
            shift = pose[:3, :3].T @ readout.direction
            stretch = 1 + slopes @ (readout.mm_per_hertz * shift).astype(np.float32)
            values.append(found * stretch)
            seen.append(inside)
            by_field.append(stretch * (gradient @ readout.shift.astype(np.float32)))
            by_slope.append(np.float32(readout.mm_per_hertz) * found)
            shifts.append(shift)
            if number:
                force = (gradient * stretch[:, None]) @ pose[:3, :3].astype(np.float32)
                turn = np.cross(away, force)
                turn += by_slope[-1][:, None] * np.cross(slopes, shift.astype(np.float32))
                by_pose.append(np.concatenate([force.T, turn.T]))
        return FieldView(np.stack(values), np.stack(seen), np.stack(by_field), np.stack(by_slope),
                     np.stack(shifts), tuple(by_pose))  # fmt: skip

    def cost(self, view: FieldView, state: FieldState, variance: float) -> float:
        """Return the function that is minimised."""
        data = float(view.squares.sum(dtype=float)) * self.volume / variance
        bent = float((state.coefficients * self.lattice.bent(state.coefficients)).sum(dtype=float))
        held = self.gauge(state) / GAUGE_MM
        gains = state.gains[1:] / gain_spreads(len(self.shading))
        return (
            data + self.stiffness * bent + self.prior_weight * (held**2 + float((gains**2).sum()))
        )

    @cached_property
    def gauge_directions(self) -> np.ndarray:
        """Along which a constant field moves each image against the first one, (K, 3) mean."""
        shifts = np.array([one.readout.shift for one in self.images])
        against = shifts - shifts[0]
        length = np.linalg.norm(against, axis=1)
        apart = length > SAME_SHIFT * np.linalg.norm(shifts, axis=1).max()
        return np.where(apart, 1 / np.maximum(length, 1e-12), 0)[:, None] * against / apart.sum()

    def gauge(self, state: FieldState) -> float:
        """How far the poses went from their start along what a constant field would do, mm."""
        moved = [apply_affine(pose, self.center) - apply_affine(start, self.center)
                 for pose, start in zip(state.poses, self.start, strict=True)]  # fmt: skip
        return float((np.array(moved) * self.gauge_directions).sum())

    def variance(self, view: FieldView) -> float:
        """Squared noise of the images, from the median of their differences."""
        whole = view.seen.all(axis=0)
        squares = view.squares[whole] if whole.any() else view.squares
        degrees = max(len(self.images) - 1, 1)
        return float(np.median(squares)) / (MEDIAN_OF_CHI_SQUARE * degrees) + LEAST_NOISE**2

    def on_grid(self, values: np.ndarray) -> np.ndarray:
        """Put values (P,) where their points are in the grid, (X, Y, Z); zero elsewhere."""
        placed = np.zeros(self.counts.shape, np.float32)
        placed[self.counts] = values
        return placed

    def gathered(self, maps: dict[int, np.ndarray]) -> np.ndarray:
        """Sum maps (X, Y, Z) over the grid, by splines or slopes of their numbers: (A, B, C)."""
        total = np.zeros(self.lattice.shape, np.float32)
        for term, values in maps.items():
            total += separable([matrix.T for matrix in self.matrices[term]], values)
        return total

    def prior(self, border: np.ndarray, state: FieldState) -> np.ndarray:
        """Add the priors to the border, in place; return their part of the gradient."""
        weight = self.prior_weight
        held, n_each = np.zeros(len(border)), 6 + len(self.shading)
        for number, pose in enumerate(state.poses[1:]):
            held[n_each * number :][:3] = pose[:3, :3].T @ self.gauge_directions[number + 1]
        gain = np.flatnonzero(np.arange(len(border)) % n_each >= 6)
        border += weight / GAUGE_MM**2 * np.outer(held, held)
        tight = np.tile(gain_spreads(len(self.shading)) ** -2, len(state.poses) - 1)
        border[gain, gain] += weight * tight
        border[np.diag_indices(len(border))] += 1e-9 * np.trace(border)
        pull = weight / GAUGE_MM**2 * self.gauge(state) * held
        pull[gain] += weight * tight * state.gains[1:].ravel()
        return pull

    def moved(self, state: FieldState, step: np.ndarray, length: float) -> FieldState:
        """Take a step, or a part of it."""
        n = state.coefficients.size
        coefficients = state.coefficients + (length * step[:n]).reshape(self.lattice.shape)
        border = (length * step[n:]).reshape(len(state.poses) - 1, -1)
        poses = [pose @ exp_rigid(twist[:6], self.center)
                 for pose, twist in zip(state.poses[1:], border, strict=True)]  # fmt: skip
        gains = state.gains + np.pad(border[:, 6:], ((1, 0), (0, 0)))
        return FieldState(coefficients.astype(np.float32), (state.poses[0], *poses), gains)


def _box(mask: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """First voxel, and one after the last, of a mask and a margin around it."""
    voxels = np.argwhere(mask)
    low = np.maximum(voxels.min(axis=0) - margin, 0)
    return low, np.minimum(voxels.max(axis=0) + 1 + margin, mask.shape)


def _smoothed(image: Image, fwhm: float) -> Image:
    if not fwhm:
        return image
    sigmas = fwhm * FWHM_TO_SIGMA / image.voxel_sizes
    return Image(smooth(image.data.T, sigmas[::-1]).T, image.affine)


def _floats(matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [matrix.astype(np.float32) for matrix in matrices]

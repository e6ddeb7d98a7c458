# SPDX-License-Identifier: Apache-2.0
"""The off-resonance field from images whose phase encodings differ.

Every image k is corrected to ``C_k(x) = g_k J_k(x) I_k(r_k(x))``, ``r_k = T_k x + p_k a_k h(x)``
(:mod:`eddymotion.mapping.off_resonance`), with poses ``T_k`` and gains ``g_k`` of its own, except
for the first. The field is the one with which they agree::

    ∫ Σ_k |C_k − mean_k C|² / σ² dV + λ ∫ |D²h|² dV

over the brain, by Gauss-Newton steps from coarse to fine. The normal operator of the field is
applied by separable splines and never formed; poses and gains border it; conjugate gradients solve
both at once. docs/explanation/susceptibility.md has the mathematics.

A constant field cannot be told from a translation of the images against each other: that part of
the poses is held where they start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import all_points, mask_center
from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import smooth
from eddymotion.images.lattice import Lattice, conjugate_gradients, separable
from eddymotion.images.masking import brain_mask, moved_mask
from eddymotion.images.pyramid import FWHM_TO_SIGMA
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.mapping.off_resonance import OffResonance, Readout, undistorted
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.registration.checks import inside_grid
from eddymotion.registration.gauss_newton import GaussNewton
from eddymotion.wording import short_repr

log = logging.getLogger(__name__)

STIFFNESS = 3.0
"""Weight λ of the bending energy, mm⁴/Hz². The least and the largest of three tried, 0.1 and 10,
agree less on held-out volumes of a real series."""

MARGIN_VOXELS = 4
"""Around the brain, on which the lattice lies."""

RIM_VOXELS = 2
"""Around the brain, which is compared as well: its edge tells most."""

GAUGE_MM, GAIN_SPREAD = 0.1, 0.3
"""How far the held part of the poses, and the logarithms of the gains, may go."""

PRIOR_SHARE = 0.01
"""Weight of these priors: that of so many mm³ of each of the brain, at one standard deviation."""

MEDIAN_OF_CHI_SQUARE = 0.455

LEAST_NOISE = 0.005
"""Relative to the images' own brightness: they agree no better than their interpolation."""

SEEN_SLOPE = 0.3
"""Cosine of the angle to a phase encoding from which on an axis of the lattice enters the normal
operator: rotations of the head between images leave the others little to say."""

CONVERGED_VOXELS = 0.01
"""Root-mean-square change of the displacement at which a level ends."""

HALVINGS = 5

DARK_PART = 0.1
"""Of the median signal of the brain, below which an image shows nothing."""

MIN_COMMON = 100
"""Voxels of the first brain that each other image has to show."""

SAME_SHIFT = 0.3
"""Part of the largest displacement by which that of another image has to differ to tell a field:
opposite polarities differ by twice it. A fifth, from another grid, led fields astray."""


@dataclass(frozen=True)
class Level:
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
    Level(8.0, 5.0, 20.0, 0.1, 8),
    Level(5.0, 5.0, 14.0, 0.1, 8),
    Level(3.0, 5.0, 10.0, 0.3, 6),
    Level(1.5, 2.0, 7.0, 1.0, 4),
    Level(0.0, 2.0, 5.0, 1.0, 4),
)


@dataclass(frozen=True, eq=False)
class Distorted:
    """An echo-planar image, and how it was read out."""

    image: Image
    readout: Readout

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class FieldEstimate:
    """What was found from images of different phase encodings.

    Parameters
    ----------
    field : OffResonance
        In the frame of the first image.
    images : tuple of Distorted
    poses : (K, 4, 4) array
        First image → each, RAS+ mm; along the phase encoding they hold what they started with.
    start : (K, 4, 4) array
        Where they started.
    gains : (K,) array
        By which the images are multiplied to be alike.
    mask : (X, Y, Z) bool array
        The brain, on the grid of the first image.
    noise : float
        Standard deviation of the images about their mean, relative to their median in the brain.
    """

    field: OffResonance
    images: tuple[Distorted, ...]
    poses: np.ndarray
    start: np.ndarray
    gains: np.ndarray
    mask: np.ndarray
    noise: float = np.nan

    __repr__ = short_repr

    @property
    def grid(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape and affine of the first image."""
        first = self.images[0].image
        return first.data.shape, first.affine

    @cached_property
    def hertz(self) -> np.ndarray:
        """The field on the grid of the first image, (X, Y, Z) Hz."""
        return self.field.on_grid(*self.grid)

    @cached_property
    def _corrected(self) -> tuple[np.ndarray, np.ndarray]:
        return corrected_images(self.images, self.field, self.poses, *self.grid)

    @property
    def corrected(self) -> np.ndarray:
        """The images without distortion, on the grid of the first one: (K, X, Y, Z), NaN outside.

        They keep their own brightness.
        """
        return self._corrected[0]

    @property
    def stretch(self) -> np.ndarray:
        """Recorded millimetres a millimetre along each phase encoding: (K, X, Y, Z)."""
        return self._corrected[1]

    @cached_property
    def uncorrected(self) -> np.ndarray:
        """The images moved onto each other without any field: (K, X, Y, Z), NaN outside."""
        return corrected_images(self.images, OffResonance.none(), self.start, *self.grid)[0]

    @cached_property
    def combined(self) -> np.ndarray:
        """All images as one, (X, Y, Z): what is stretched most counts most."""
        alike = self.corrected * self.gains[:, None, None, None]
        return combined(alike.astype(np.float32), self.stretch)

    @property
    def folded(self) -> float:
        """Share of the brain in which one of the images is folded."""
        return float((self.stretch[:, self.mask] <= 0).any(axis=0).mean())

    @property
    def dark(self) -> float:
        """Share of the brain in which no image shows a signal."""
        inside = self.combined[self.mask]
        return float((inside < DARK_PART * np.median(inside)).mean())

    @property
    def similarity(self) -> tuple[float, float]:
        """Correlation of the images within the brain before and after, mean of all pairs.

        NaN of one image.
        """
        before, after = (
            agreement(images, self.mask) for images in (self.uncorrected, self.corrected)
        )
        return before, after

    @property
    def displacement(self) -> np.ndarray:
        """By how much the first image is displaced at each voxel, (X, Y, Z) mm."""
        return self.hertz * self.images[0].readout.mm_per_hertz


def estimate_off_resonance(
    images: Sequence[Distorted],
    *,
    mask: np.ndarray | None = None,
    poses: np.ndarray | None = None,
    field: OffResonance | None = None,
    levels: Sequence[Level] = LEVELS,
    stiffness: float = STIFFNESS,
    seed: int = 0,
) -> FieldEstimate:
    """Find the off-resonance field from images whose phase encodings differ.

    Parameters
    ----------
    images : sequence of Distorted
        Two or more of one contrast, on any grids. The field is that in the frame of the first.
    mask : (X, Y, Z) bool array, optional
        The brain, on the grid of the first image; found in the images when not given.
    poses : (K, 4, 4) array, optional
        Where to start, first image → each, RAS+ mm; a rigid registration of the distorted images
        when not given. What cannot be told from a constant field stays as it is there.
    field : OffResonance, optional
        Where to start; none when not given.
    levels : sequence of Level
    stiffness : float
        Weight λ of the bending energy, mm⁴/Hz².
    seed : int
        Of the registration's points.

    Raises
    ------
    EddymotionError
        If there is one image alone, all are displaced alike, or they do not overlap.
    """
    images = tuple(images)
    check_images(images)
    with one_blas_thread():
        first = images[0].image
        own = brain_mask(first.data) if mask is None else np.asarray(mask, bool)
        start = rigid_start(images, own, seed) if poses is None else np.array(poses, float)
        check_overlap(images, own, start)
        brain = own if mask is not None else _brain_of_all(images, own, start)
        state = _State(np.zeros(0), tuple(start), np.zeros(len(images)))
        shown = [_normalised(one.image, brain, first, pose)
                 for one, pose in zip(images, start, strict=True)]  # fmt: skip
        found, noise = field, np.inf
        for level in levels:
            problem = _Problem.at(level, images, shown, brain, start, stiffness * level.stiffness)
            state = problem.taking_over(state, found)
            state, noise = problem.solved(state, level.steps)
            found = OffResonance(problem.field_of(state), problem.lattice.affine)
    assert found is not None
    return FieldEstimate(
        found, images, np.stack(state.poses), start, np.exp(state.gains), brain, float(noise)
    )


def corrected_images(
    images: Sequence[Distorted],
    field: OffResonance,
    poses: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Correct several images onto one grid: images and stretch, (K, X, Y, Z) each."""
    both = [undistorted(one.image, one.readout, field, pose, shape, affine)
            for one, pose in zip(images, poses, strict=True)]  # fmt: skip
    return np.stack([image for image, _ in both]), np.stack([stretch for _, stretch in both])


def combined(corrected: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Average images of different phase encodings, the weights the squares of their stretch.

    Where an image was squeezed, little is known of what is where; where it was stretched, much.

    Parameters
    ----------
    corrected, stretch : (K, X, Y, Z) array
        NaN where an image does not reach.

    Returns
    -------
    (X, Y, Z) float32 array
        Zero where none reaches.
    """
    seen = np.isfinite(corrected)
    weights = np.where(seen, np.maximum(stretch, 1e-3) ** 2, 0.0)
    total = weights.sum(axis=0)
    mean = (weights * np.where(seen, corrected, 0.0)).sum(axis=0) / np.where(total > 0, total, 1.0)
    return mean.astype(np.float32)


def agreement(images: np.ndarray, mask: np.ndarray) -> float:
    """Correlation of images (K, X, Y, Z) within a mask, the mean of all pairs."""
    if len(images) < 2:
        return np.nan
    inside = images[:, mask]
    inside = inside[:, np.isfinite(inside).all(axis=0)]
    table = np.corrcoef(inside)
    return float(np.mean([table[a, b] for a, b in combinations(range(len(images)), 2)]))


def check_images(images: Sequence[Distorted]) -> None:
    """Raise if the images cannot tell a field."""
    if len(images) < 2:
        raise EddymotionError(
            f"off-resonance field: {len(images)} image given, expected two or more of different "
            "phase encodings; add one of the opposite polarity, or give a measured map"
        )
    shifts = np.array([one.readout.shift for one in images])
    largest = np.linalg.norm(shifts, axis=1).max()
    if np.linalg.norm(shifts - shifts[0], axis=1).max() < SAME_SHIFT * largest:
        raise EddymotionError(
            "off-resonance field: all images have about the same phase encoding in space, so that "
            "they are distorted alike and tell nothing of it; give images of opposite polarity, "
            "or correct PhaseEncodingDirection"
        )


def check_overlap(images: Sequence[Distorted], mask: np.ndarray, poses: np.ndarray) -> None:
    """Raise if one of the images shows next to nothing of the first one's brain."""
    points = apply_affine(images[0].image.affine, np.argwhere(mask))
    for number, (one, pose) in enumerate(zip(images, poses, strict=True)):
        n_common = int(inside_grid(apply_affine(pose, points), one.image).sum())
        if n_common < min(MIN_COMMON, len(points)):
            raise EddymotionError(
                f"off-resonance field: image {number + 1} shows {n_common} voxels of the first "
                f"one's brain, expected {MIN_COMMON} or more; give images of the same head, or "
                "correct their affines"
            )


def rigid_start(images: Sequence[Distorted], mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Register the distorted images to the first one: poses (K, 4, 4), good to about 1 mm, 1°.

    Along the phase encoding this takes the mean field over the brain to be nearly zero.
    """
    first = images[0].image
    engine = GaussNewton(symmetric=False)
    poses = [np.eye(4)]
    for one in images[1:]:
        if not inside_grid(apply_affine(first.affine, np.argwhere(mask)), one.image).any():
            poses.append(np.eye(4))  # told by check_overlap
            continue
        found = engine.register(first, one.image, metric="nmi", fixed_mask=mask, seed=seed)
        poses.append(found.matrix)
    return np.stack(poses)


def _brain_of_all(images: Sequence[Distorted], own: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Return the brain as any of the images shows it, on the grid of the first one."""
    first = images[0].image
    whole = own.copy()
    for one, pose in zip(images[1:], poses[1:], strict=True):
        to_other = np.linalg.inv(one.image.affine) @ pose @ first.affine
        whole |= moved_mask(brain_mask(one.image.data), to_other, own.shape)
    return whole


def _normalised(image: Image, brain: np.ndarray, first: Image, pose: np.ndarray) -> Image:
    """Scale an image to a median of one in the brain."""
    points = apply_affine(pose, apply_affine(first.affine, np.argwhere(brain)))
    values = image.spline.sample(points)
    values = values[np.isfinite(values)]
    middle = float(np.median(values)) if values.size else 0.0
    if not middle > 0:
        middle = float(np.abs(image.data).max()) or 1.0
    return Image(np.asarray(image.data, np.float32) / np.float32(middle), image.affine)


@dataclass(frozen=True, eq=False)
class _State:
    """Coefficients of the field, poses, and the logarithms of the gains."""

    coefficients: np.ndarray
    poses: tuple[np.ndarray, ...]
    gains: np.ndarray


@dataclass(frozen=True, eq=False)
class _View:
    """The corrected images at a state, and how they change with it; P points.

    Parameters
    ----------
    values : (K, P) array
        Corrected images.
    seen : (K, P) bool array
    by_field : (K, P) array
        Derivative by the field.
    by_slope : (K, P) array
        Derivative by the stretch, times mm per Hz.
    shifts : (K, 3) array
        Direction of the phase encoding in the head's frame.
    by_pose : tuple of (6, P) arrays
        Derivatives by translation and rotation of all images but the first.
    """

    values: np.ndarray
    seen: np.ndarray
    by_field: np.ndarray
    by_slope: np.ndarray
    shifts: np.ndarray
    by_pose: tuple[np.ndarray, ...]

    @cached_property
    def n_seen(self) -> np.ndarray:
        """Images that show each point, at least one: (P,)."""
        return np.maximum(self.seen.sum(axis=0, dtype=np.float32), 1)

    @cached_property
    def residuals(self) -> np.ndarray:
        """Differences from the mean of the images that show a point, (K, P)."""
        return self.centred(self.values)

    def centred(self, values: np.ndarray) -> np.ndarray:
        """Take the mean over the images that show a point off values (K, P)."""
        mean = (values * self.seen).sum(axis=0) / self.n_seen
        return np.where(self.seen, values - mean, np.float32(0))

    @cached_property
    def squares(self) -> np.ndarray:
        """Sums of squared residuals, (P,)."""
        return (self.residuals**2).sum(axis=0)


@dataclass(frozen=True, eq=False)
class _Problem:
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
        RAS+ mm of the reference frame.
    counts : (P,) bool array
        Whether a point is compared.
    volume : float
        Of a point, mm³.
    stiffness : float
    start : (K, 4, 4) array
    center : (3,) array
        About which heads turn, RAS+ mm.
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

    @classmethod
    def at(
        cls,
        level: Level,
        images: Sequence[Distorted],
        shown: Sequence[Image],
        brain: np.ndarray,
        start: np.ndarray,
        stiffness: float,
    ) -> _Problem:
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
        grown = ndimage.binary_dilation(brain, iterations=RIM_VOXELS)
        voxels = all_points(at) + low
        return cls(
            images,
            [Spline.of(_smoothed(image, level.fwhm)) for image in shown],
            lattice,
            matrices,
            apply_affine(reference.affine, voxels),
            grown[tuple(voxels.T)],
            float(np.prod(reference.voxel_sizes * every)),
            stiffness,
            start,
            mask_center(brain, reference.affine),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along the axes of the lattice."""
        return tuple(len(matrix) for matrix in self.matrices[0])

    @cached_property
    def to_axes(self) -> np.ndarray:
        """Derivatives by mm along the axes of the lattice → along RAS+, by product from right."""
        return np.linalg.inv(self.lattice.affine)[:3, :3] * self.lattice.spacing[:, None]

    @cached_property
    def prior_weight(self) -> float:
        """Of a prior at one standard deviation, in units of the cost."""
        return PRIOR_SHARE * self.volume * float(self.counts.sum())

    def taking_over(self, state: _State, field: OffResonance | None) -> _State:
        """Bring a field onto this lattice."""
        if field is None:
            return _State(np.zeros(self.lattice.shape, np.float32), state.poses, state.gains)
        taken = field.coefficients_on(self.lattice)
        return _State(taken.astype(np.float32), state.poses, state.gains)

    def field_of(self, state: _State) -> np.ndarray:
        """Return the coefficients of the field, in double precision."""
        return state.coefficients.astype(float)

    def view(self, state: _State) -> _View:
        """Correct the images at a state."""
        hertz = separable(self.matrices[0], state.coefficients).ravel()
        along = [separable(m, state.coefficients).ravel() for m in self.matrices[1:]]
        slopes = np.stack(along, axis=1) @ self.to_axes.astype(np.float32)
        away = (self.points - self.center).astype(np.float32)
        values, seen, by_field, by_slope, shifts, by_pose = [], [], [], [], [], []
        for number, (one, spline, pose) in enumerate(
            zip(self.images, self.splines, state.poses, strict=True)
        ):
            readout, gain = one.readout, np.float32(np.exp(state.gains[number]))
            recorded = apply_affine(pose, self.points) + hertz[:, None] * readout.shift
            found, gradient = spline.sample_with_gradient(recorded)
            inside = np.isfinite(found)
            found, gradient = np.nan_to_num(found) * gain, np.nan_to_num(gradient) * gain
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
        return _View(np.stack(values), np.stack(seen), np.stack(by_field), np.stack(by_slope),
                     np.stack(shifts), tuple(by_pose))  # fmt: skip

    def cost(self, view: _View, state: _State, variance: float) -> float:
        """Return the function that is minimised."""
        data = float(view.squares[self.counts].sum(dtype=float)) * self.volume / variance
        bent = float((state.coefficients * self.lattice.bent(state.coefficients)).sum(dtype=float))
        held = self.gauge(state) / GAUGE_MM
        gains = state.gains[1:] / GAIN_SPREAD
        return data + self.stiffness * bent + self.prior_weight * (held**2 + float(gains @ gains))

    @cached_property
    def gauge_directions(self) -> np.ndarray:
        """Along which a constant field moves each image against the first one, (K, 3) mean."""
        shifts = np.array([one.readout.shift for one in self.images])
        against = shifts - shifts[0]
        length = np.linalg.norm(against, axis=1)
        apart = length > SAME_SHIFT * np.linalg.norm(shifts, axis=1).max()
        return np.where(apart, 1 / np.maximum(length, 1e-12), 0)[:, None] * against / apart.sum()

    def gauge(self, state: _State) -> float:
        """How far the poses went from their start along what a constant field would do, mm."""
        moved = [apply_affine(pose, self.center) - apply_affine(start, self.center)
                 for pose, start in zip(state.poses, self.start, strict=True)]  # fmt: skip
        return float((np.array(moved) * self.gauge_directions).sum())

    def variance(self, view: _View) -> float:
        """Squared noise of the images, from the median of their differences."""
        whole = self.counts & view.seen.all(axis=0)
        squares = view.squares[whole] if whole.any() else view.squares
        degrees = max(len(self.images) - 1, 1)
        return float(np.median(squares)) / (MEDIAN_OF_CHI_SQUARE * degrees) + LEAST_NOISE**2

    def solved(self, state: _State, steps: int) -> tuple[_State, float]:
        """Take steps until they are small; return the noise, too."""
        view = self.view(state)
        variance = np.inf
        voxel = float(self.images[0].image.voxel_sizes.min())
        reach = max(one.readout.mm_per_hertz for one in self.images)
        for _ in range(steps):
            variance = min(variance, self.variance(view))
            cost = self.cost(view, state, variance)
            step = _Equations.of(self, view, state, variance).solution()
            for halved in range(HALVINGS):
                moved = self.moved(state, step, 0.5**halved)
                there = self.view(moved)
                if self.cost(there, moved, variance) < cost * (1 + 1e-5):
                    break
            else:
                break
            change = separable(self.matrices[0], moved.coefficients - state.coefficients)
            state, view = moved, there
            rms = float(np.sqrt((change.ravel()[self.counts] ** 2).mean()))
            if rms * reach < CONVERGED_VOXELS * voxel:
                break
        return state, float(np.sqrt(variance))

    def gathered(self, maps: dict[int, np.ndarray]) -> np.ndarray:
        """Sum maps over the points, by the splines or slopes of their numbers: (A, B, C)."""
        total = np.zeros(self.lattice.shape, np.float32)
        for term, values in maps.items():
            back = [matrix.T for matrix in self.matrices[term]]
            total += separable(back, values.reshape(self.shape))
        return total

    def prior(self, border: np.ndarray, state: _State) -> np.ndarray:
        """Add the priors to the border, in place; return their part of the gradient."""
        weight = self.prior_weight
        held = np.zeros(len(border))
        for number, pose in enumerate(state.poses[1:]):
            held[7 * number :][:3] = pose[:3, :3].T @ self.gauge_directions[number + 1]
        gain = np.arange(6, len(border), 7)
        border += weight / GAUGE_MM**2 * np.outer(held, held)
        border[gain, gain] += weight / GAIN_SPREAD**2
        border[np.diag_indices(len(border))] += 1e-9 * np.trace(border)
        pull = weight / GAUGE_MM**2 * self.gauge(state) * held
        pull[gain] += weight / GAIN_SPREAD**2 * state.gains[1:]
        return pull

    def moved(self, state: _State, step: np.ndarray, length: float) -> _State:
        """Take a step, or a part of it."""
        n = state.coefficients.size
        coefficients = state.coefficients + (length * step[:n]).reshape(self.lattice.shape)
        border = (length * step[n:]).reshape(-1, 7)
        poses = [pose @ exp_rigid(twist[:6], self.center)
                 for pose, twist in zip(state.poses[1:], border, strict=True)]  # fmt: skip
        gains = state.gains + np.concatenate([[0], border[:, 6]])
        return _State(coefficients.astype(np.float32), (state.poses[0], *poses), gains)


@dataclass(frozen=True, eq=False)
class _Equations:
    """The Gauss-Newton equations at a state: field first, then seven a border image.

    Parameters
    ----------
    problem : _Problem
    terms : tuple of int
        Which matrices of the problem the operator uses: the field, and slopes along some axes.
    maps : dict
        Pairs of these → (X, Y, Z) weights.
    coupling : (7 (K − 1), M) array
        Border against field.
    border : (7 (K − 1), 7 (K − 1)) array
    right : (M + 7 (K − 1),) array
        Minus half the gradient of the cost.
    """

    problem: _Problem
    terms: tuple[int, ...]
    maps: dict[tuple[int, int], np.ndarray]
    coupling: np.ndarray
    border: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, problem: _Problem, view: _View, state: _State, variance: float) -> _Equations:
        """Set up the equations.

        The right side has the slopes along all axes: where steps end is exact. The operator leaves
        out axes that hardly matter.
        """
        weight = np.where(problem.counts, np.float32(problem.volume / variance), np.float32(0))
        toward = view.shifts @ problem.to_axes.T  # slope along p by slopes along the axes
        by_term = [view.by_field, *(view.by_slope * toward[:, axis, None].astype(np.float32)
                                    for axis in range(3))]  # fmt: skip
        seen = tuple(axis + 1 for axis in range(3) if np.abs(toward[:, axis]).max() > SEEN_SLOPE)
        terms = (0, *seen)
        centred = {term: view.centred(by_term[term]) for term in terms}
        maps = {
            (a, b): ((centred[a] * centred[b]).sum(axis=0) * weight).reshape(problem.shape)
            for a in terms for b in terms if a <= b
        }  # fmt: skip
        forces = [(derivative * view.residuals).sum(axis=0) * weight for derivative in by_term]
        right = problem.stiffness * problem.lattice.bent(state.coefficients)
        right = right + problem.gathered(dict(enumerate(forces)))
        columns, owners = _columns(view)
        weighed = columns * weight
        border = (weighed @ columns.T) * (owners[:, None] == owners)
        shared = columns / np.sqrt(view.n_seen)
        border = border - (shared * weight) @ shared.T
        coupling = np.stack([
            problem.gathered({term: column * centred[term][owner] for term in terms}).ravel()
            for column, owner in zip(weighed, owners, strict=True)
        ])  # fmt: skip
        pull = np.einsum("mp,mp->m", weighed, view.residuals[owners]).astype(float)
        border = border.astype(float)
        pull = pull + problem.prior(border, state)
        return cls(problem, terms, maps, coupling, border,
                   -np.concatenate([right.ravel(), pull]).astype(float))  # fmt: skip

    def normal(self, x: np.ndarray) -> np.ndarray:
        """Apply the operator to a vector (M + 7 (K − 1),)."""
        problem, n = self.problem, self.coupling.shape[1]
        c, rest = x[:n].reshape(problem.lattice.shape).astype(np.float32), x[n:]
        values = {term: separable(problem.matrices[term], c) for term in self.terms}
        out = {
            a: sum(self.maps[min(a, b), max(a, b)] * values[b] for b in self.terms)
            for a in self.terms
        }  # fmt: skip
        field = problem.gathered(out) + problem.stiffness * problem.lattice.bent(c)
        return np.concatenate([
            field.ravel() + rest @ self.coupling, self.border @ rest + self.coupling @ x[:n]
        ])  # fmt: skip

    def solution(self) -> np.ndarray:
        """Solve for the step."""
        problem, n = self.problem, self.coupling.shape[1]
        n_points = max(int(problem.counts.sum()), 1) * problem.volume
        mean = {term: float(self.maps[term, term].sum(dtype=float)) / n_points
                for term in self.terms}  # fmt: skip
        slopes = [mean.get(axis + 1, 0.0) / 2 for axis in range(3)]
        of_field = problem.lattice.preconditioner(
            max(mean[0] / 2, 1e-12), slopes, problem.stiffness
        )
        of_border = np.linalg.inv(self.border)

        def precondition(x: np.ndarray) -> np.ndarray:
            field = of_field(x[:n].reshape(problem.lattice.shape))
            return np.concatenate([field.ravel(), of_border @ x[n:]])

        return conjugate_gradients(self.normal, self.right, precondition, tolerance=0.04, limit=60)


def _columns(view: _View) -> tuple[np.ndarray, np.ndarray]:
    """List derivatives by the pose and gain of all images but the first, and whose they are."""
    parts, owners = [], []
    for number, by_pose in enumerate(view.by_pose, start=1):
        parts += [by_pose, view.values[number][None]]
        owners += [number] * 7
    return np.concatenate(parts) * view.seen[owners], np.array(owners)


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

# SPDX-License-Identifier: Apache-2.0
"""The off-resonance field from images whose phase encodings differ.

Every image k is corrected to ``C_k(x) = g_k J_k(x) I_k(r_k(x))``, ``r_k = T_k x + p_k a_k h(x)``
(:mod:`eddymotion.mapping.off_resonance`), with poses ``T_k`` and gains ``g_k`` of its own, except
for the first; gains vary over the brain where that is shown (:mod:`.shading`). The field is the
one with which they agree::

    ∫ Σ_k |C_k − mean_k C|² / σ² dV + λ ∫ |D²h|² dV

over the brain, by Gauss-Newton steps from coarse to fine. The normal operator of the field is
applied by separable splines and never formed; poses and gains border it; conjugate gradients solve
both at once. docs/explanation/susceptibility.md has the mathematics.

A constant field looks like a translation of the images against each other: that part of the poses
is held where they start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eddymotion.estimation.off_resonance.descent import descend
from eddymotion.estimation.off_resonance.images import (
    Distorted,
    brain_of_all,
    check_images,
    check_overlap,
    combined,
    corrected_images,
    mean_correlation,
    normalised,
    rigid_start,
)
from eddymotion.estimation.off_resonance.problem import LEVELS, FieldLevel, FieldProblem
from eddymotion.estimation.off_resonance.shading import LESS_NOISE, N_SHADES, shading_terms
from eddymotion.estimation.off_resonance.view import FieldState
from eddymotion.images.grid import grid_points, mask_center
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.wording import short_repr

log = logging.getLogger(__name__)

STIFFNESS = 3.0
"""Weight λ of the bending energy, mm⁴/Hz². The least and the largest of three tried, 0.1 and 10,
agree less on held-out volumes of a real series."""

N_ASKED = 2
"""Levels, the coarsest, that are solved with a brightness that varies and without."""

DARK_PART = 0.1
"""Of the median signal of the brain, below which an image shows nothing."""


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
    log_gains : (K, G) array
        Of the logarithms of what the images are multiplied by to be alike: a number, or
        coefficients of :func:`.shading.shading_terms` about the centre of the mask.
    mask : (X, Y, Z) bool array
        The brain, on the grid of the first image.
    noise : float
        Standard deviation of the images about their mean, relative to their median in the brain.
    """

    field: OffResonance
    images: tuple[Distorted, ...]
    poses: np.ndarray
    start: np.ndarray
    log_gains: np.ndarray
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
    def brightness(self) -> np.ndarray:
        """By what the images are multiplied to be alike: (K, X, Y, Z) float32."""
        shape, affine = self.grid
        points, center = grid_points(shape, affine), mask_center(self.mask, affine)
        terms = shading_terms(points, center, self.log_gains.shape[1])
        return np.exp(self.log_gains.astype(np.float32) @ terms).reshape(-1, *shape)

    @property
    def gains(self) -> np.ndarray:
        """Their means over the brain, (K,)."""
        return self.brightness[:, self.mask].mean(axis=1)

    @property
    def shading(self) -> float:
        """By what part the ratio of brightness of two images varies: the largest deviation."""
        return float(np.log(self.brightness[:, self.mask]).std(axis=1).max())

    @cached_property
    def combined(self) -> np.ndarray:
        """All images as one, (X, Y, Z): what is stretched most counts most."""
        return combined(self.corrected * self.brightness, self.stretch)

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

        A brightness in which they differ is taken off both. NaN of one image.
        """
        before, after = (
            mean_correlation(images * self.brightness, self.mask)
            for images in (self.uncorrected, self.corrected)
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
    levels: Sequence[FieldLevel] = LEVELS,
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
        when not given. What looks like a constant field stays as it is there.
    levels : sequence of FieldLevel
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
        brain = own if mask is not None else brain_of_all(images, own, start)
        shown = [normalised(one.image, brain, first, pose)
                 for one, pose in zip(images, start, strict=True)]  # fmt: skip
        fit = _Fit(images, shown, brain, start)
        early, late = levels[:N_ASKED], levels[N_ASKED:]
        plain, shaded = (fit.solved(early, fit.at_start(n)) for n in (1, N_SHADES))
        there = fit.solved(late, shaded if shaded.noise < LESS_NOISE * plain.noise else plain)
    found = FieldEstimate(
        there.field, images, np.stack(there.state.poses), start, there.state.gains, brain,
        float(there.noise),
    )  # fmt: skip
    if there.state.gains.shape[1] > 1:
        log.info(
            "off-resonance field: the brightness of the images differs smoothly, by %.0f %% over "
            "the brain, which was told apart from the field", 100 * found.shading,
        )  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class _Found:
    """State, field and noise after some levels."""

    state: FieldState
    field: OffResonance
    noise: float = np.inf


@dataclass(frozen=True, eq=False)
class _Fit:
    """Images, the same scaled, the brain, and where poses start."""

    images: tuple[Distorted, ...]
    shown: list[Image]
    brain: np.ndarray
    start: np.ndarray

    def at_start(self, n_shades: int) -> _Found:
        """No field, and gains of `n_shades` terms."""
        gains = np.zeros((len(self.images), n_shades))
        return _Found(FieldState(np.zeros(0), tuple(self.start), gains), OffResonance.none())

    def solved(self, levels: Sequence[FieldLevel], before: _Found) -> _Found:
        """Go on through some levels."""
        for level in levels:
            problem = FieldProblem.at(
                level, self.images, self.shown, self.brain, self.start,
                STIFFNESS * level.stiffness, before.state.gains.shape[1],
            )  # fmt: skip
            state = problem.taking_over(before.state, before.field)
            state, noise = descend(problem, state, level.steps)
            field = OffResonance(problem.field_of(state), problem.lattice.affine)
            before = _Found(state, field, noise)
        return before

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
from eddymotion.estimation.off_resonance.view import FieldState
from eddymotion.images.masking import brain_mask
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.mapping.off_resonance import OffResonance
from eddymotion.wording import short_repr

STIFFNESS = 3.0
"""Weight λ of the bending energy, mm⁴/Hz². The least and the largest of three tried, 0.1 and 10,
agree less on held-out volumes of a real series."""

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
            mean_correlation(images, self.mask) for images in (self.uncorrected, self.corrected)
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
        when not given. What cannot be told from a constant field stays as it is there.
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
        state = FieldState(np.zeros(0), tuple(start), np.zeros(len(images)))
        shown = [normalised(one.image, brain, first, pose)
                 for one, pose in zip(images, start, strict=True)]  # fmt: skip
        found, noise = None, np.inf
        for level in levels:
            problem = FieldProblem.at(
                level, images, shown, brain, start, STIFFNESS * level.stiffness
            )
            state = problem.taking_over(state, found)
            state, noise = descend(problem, state, level.steps)
            found = OffResonance(problem.field_of(state), problem.lattice.affine)
    assert found is not None
    return FieldEstimate(
        found, images, np.stack(state.poses), start, np.exp(state.gains), brain, float(noise)
    )

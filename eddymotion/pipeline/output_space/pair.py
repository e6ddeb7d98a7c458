# SPDX-License-Identifier: Apache-2.0
"""Registering the image that gives the space with the reference of the series."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.images.pyramid import decimate
from eddymotion.pairs.measures import PairOverlay, PairQuality, resampled_onto
from eddymotion.pipeline.output_space.reference import Reference, widened
from eddymotion.pipeline.output_space.space import OutputSpace, Overlay
from eddymotion.registration import GaussNewton, Registration, initial_transform
from eddymotion.registration.intensities import intensity_curve
from eddymotion.registration.problem import head_of

log = logging.getLogger(__name__)

ONE_PLACE_MM = 1.0
"""Between two registrations of the brain that have ended at one place, on average."""


ROUNDING = 0.05
"""Of the share of voxel sizes: 1.98 voxels to one are two."""


def _better(warped: OutputSpace, linear: OutputSpace) -> OutputSpace:
    """Keep the linear part alone if the images agree less through the warp."""
    before, after = (found.quality.after.similarity for found in (linear, warped))
    if after >= before:
        return warped
    log.warning("output space: the images agree less with the warp (normalised mutual information "
                "%.3f → %.3f); it is left out", before, after)  # fmt: skip
    return replace(linear, transform="affine")


@dataclass(frozen=True, eq=False)
class SpacePair:
    """The image that gives the space, as fine as the series deserves, and its reference.

    Parameters
    ----------
    target : Image
    target_mask : (X, Y, Z) bool array, optional
    reference : Reference
    white_matter : (X, Y, Z) array, optional
        Of the target.
    finest : (3,) array
        Voxel sizes of the target as it was given, mm.
    """

    target: Image
    target_mask: np.ndarray | None
    reference: Reference
    white_matter: np.ndarray | None
    finest: np.ndarray

    @classmethod
    def of(
        cls,
        target: Image,
        target_mask: np.ndarray | None,
        reference: Reference,
        white_matter: np.ndarray | None = None,
    ) -> SpacePair:
        """Average voxels of the target that are finer than those of the reference."""
        sizes = reference.image.voxel_sizes.min() / target.voxel_sizes
        factors = np.maximum((sizes + ROUNDING).astype(int), 1)
        coarse, mask = coarsened(target, target_mask, factors)
        if white_matter is not None:
            white_matter = decimate(Image(white_matter, target.affine), factors).data
        return cls(coarse, mask, reference, white_matter, target.voxel_sizes)

    def register_linearly(
        self, transform: str, seed: int, start: np.ndarray | None = None
    ) -> Registration:
        """Register from a start, or from where the search for one leads.

        Two starts that are far apart, as the files lie and with the middles on each other, and
        end at one place are taken to have found it; otherwise many are tried.
        """
        if start is not None:
            return self._registered(transform, seed, start)
        with suppress(EddymotionError):  # nothing in common there
            first, second = (
                self._registered(transform, seed, self._start(method, seed))
                for method in ("header", "mass")
            )
            if self._apart(first, second) < ONE_PLACE_MM:
                return first
        return self._registered(transform, seed, self._start("multi", seed))

    def mirrored(self, matrix: np.ndarray) -> tuple[SpacePair, np.ndarray]:
        """Mirror the reference from left to right: the pair, and where to start from.

        Parameters
        ----------
        matrix : (4, 4) array
            Target → reference, where the two lie on each other.
        """
        image, center = self.reference.image, self.reference.points.mean(axis=0)
        there = _left_right(center)
        here = _left_right(apply_affine(np.linalg.inv(matrix), center))
        flipped = replace(self.reference, image=Image(image.data, there @ image.affine))
        return replace(self, reference=flipped), there @ matrix @ here

    def _registered(self, transform: str, seed: int, start: np.ndarray) -> Registration:
        return GaussNewton().register(
            self.target, self.reference.image, transform=transform, metric="nmi", init=start,
            seed=seed, **self._masks,
        )  # fmt: skip

    def _start(self, method: str, seed: int) -> np.ndarray:
        return initial_transform(
            self.target, self.reference.image, method, seed=seed, **self._masks
        )

    @cached_property
    def _masks(self) -> dict[str, Any]:
        """Where both images count: at the brain and near it, where the brain is known."""
        near = self.target_mask
        if near is not None:
            near = widened(near, self.target.voxel_sizes)
        return {"fixed_mask": near, "moving_mask": self.reference.near_brain}

    def _apart(self, one: Registration, other: Registration) -> float:
        """How far apart (mm) two registrations put the brain, on average."""
        points = self.reference.points
        there = apply_affine(one.matrix @ np.linalg.inv(other.matrix), points)
        return float(np.linalg.norm(there - points, axis=1).mean())

    def warped(self, linear: Registration, seed: int) -> OutputSpace:
        """Refine by symmetric normalisation, where that is for the better."""
        from eddymotion.registration.engines.dipy import DipyRegistrar

        warp = DipyRegistrar(prealignment="init").register(
            self.target, self.in_contrast_of_target(linear), transform="syn", init=linear.matrix,
            seed=seed, fixed_mask=self.target_mask, moving_mask=self.reference.near_brain,
        )  # fmt: skip
        return _better(self.space(warp, "syn"), self.space(linear, "affine"))

    def in_contrast_of_target(self, linear: Registration) -> Image:
        """Give the intensities of the reference the meaning that they have in the target.

        Local cross-correlation takes dark for bright where that fits better, and drifts by
        centimetres between a T1w and a b=0 image.
        """
        image = self.reference.image
        brain = Image(self.reference.near_brain.astype(np.float32), image.affine)
        where = resampled_onto(self.target, brain, linear, 1)[0] > 0.5
        if self.target_mask is not None:
            where &= self.target_mask
        shown, _ = resampled_onto(self.target, image, linear, 1)
        curve = intensity_curve(shown[where], self.target.data[where])
        return replace(image, data=np.interp(image.data, *curve).astype(np.float32))

    def space(self, registration: Registration, transform: str) -> OutputSpace:
        """Compare both images before and after."""
        image, head = self.reference.image, head_of(self.target, self.target_mask)
        masked = replace(image, data=np.where(self.reference.near_brain, image.data, 0))
        nothing = Registration(np.eye(4), True, "as positioned by the headers")
        before, after = (
            PairOverlay.of(self.target, masked, one, head) for one in (nothing, registration)
        )
        quality = PairQuality.of(
            registration, self.target, head, before.agreement, after.agreement
        )
        shown = Overlay(self.target, before.shown, after.shown, self.white_matter)
        return OutputSpace(self.target, registration, transform, quality, shown)


def _left_right(center: np.ndarray) -> np.ndarray:
    """Return the mirror from left to right through a point, (4, 4)."""
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 2 * center[0]
    return mirror


def coarsened(
    image: Image, mask: np.ndarray | None, factors: np.ndarray
) -> tuple[Image, np.ndarray | None]:
    """Average blocks of `factors` (3,) voxels; what does not fill a block is left out."""
    if mask is not None:
        mask = decimate(Image(mask, image.affine), factors).data >= 0.5
    return decimate(image, factors), mask

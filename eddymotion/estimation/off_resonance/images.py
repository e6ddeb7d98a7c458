# SPDX-License-Identifier: Apache-2.0
"""Echo-planar images of different phase encodings: start, correction, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask, moved_mask
from eddymotion.mapping.off_resonance import OffResonance, Readout, undistorted
from eddymotion.registration.checks import inside_grid
from eddymotion.registration.gauss_newton import GaussNewton
from eddymotion.wording import short_repr

MIN_COMMON = 100
"""Voxels of the first brain that each other image has to show."""

SAME_SHIFT = 0.3
"""Part of the largest displacement by which that of another image has to differ to show a field:
opposite polarities differ by twice it. A fifth, from another grid, led fields astray."""


@dataclass(frozen=True, eq=False)
class Distorted:
    """An echo-planar image, how it was read out, and the name of its file, if it has one."""

    image: Image
    readout: Readout
    name: str = ""

    __repr__ = short_repr


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


def mean_correlation(images: np.ndarray, mask: np.ndarray) -> float:
    """Correlation of images (K, X, Y, Z) within a mask, the mean of all pairs."""
    if len(images) < 2:
        return np.nan
    inside = images[:, mask]
    inside = inside[:, np.isfinite(inside).all(axis=0)]
    table = np.corrcoef(inside)
    return float(np.mean([table[a, b] for a, b in combinations(range(len(images)), 2)]))


def check_images(images: Sequence[Distorted]) -> None:
    """Raise if the images cannot show a field."""
    if len(images) < 2:
        raise EddymotionError(
            f"off-resonance field: {len(images)} image given, expected at least two of different "
            "phase encodings; add one of the opposite polarity, or give a measured map"
        )
    shifts = np.array([one.readout.shift for one in images])
    largest = np.linalg.norm(shifts, axis=1).max()
    if np.linalg.norm(shifts - shifts[0], axis=1).max() < SAME_SHIFT * largest:
        raise EddymotionError(
            "off-resonance field: all images have about the same phase encoding in space, so "
            "they are distorted alike and do not determine it; give images of opposite "
            "polarity, or correct PhaseEncodingDirection"
        )


def check_overlap(images: Sequence[Distorted], mask: np.ndarray, poses: np.ndarray) -> None:
    """Raise if one of the images shows next to nothing of the first one's brain."""
    points = apply_affine(images[0].image.affine, np.argwhere(mask))
    for number, (one, pose) in enumerate(zip(images, poses, strict=True), start=1):
        n_common = int(inside_grid(apply_affine(pose, points), one.image).sum())
        if n_common < min(MIN_COMMON, len(points)):
            raise EddymotionError(
                f"off-resonance field: {one.name or f'image {number}'} shows {n_common} voxels of "
                f"the brain of {images[0].name or 'image 1'}, expected at least {MIN_COMMON}; "
                "give images of the same head, or correct their affines"
            )


def rigid_start(images: Sequence[Distorted], mask: np.ndarray, seed: int) -> np.ndarray:
    """Register the distorted images to the first one: poses (K, 4, 4), good to about 1 mm, 1°.

    Along the phase encoding this takes the mean field over the brain to be nearly zero.
    """
    first = images[0].image
    engine = GaussNewton(symmetric=False)
    poses = [np.eye(4)]
    for one in images[1:]:
        if not inside_grid(apply_affine(first.affine, np.argwhere(mask)), one.image).any():
            poses.append(np.eye(4))  # check_overlap says so
            continue
        found = engine.register(first, one.image, metric="nmi", fixed_mask=mask, seed=seed)
        poses.append(found.matrix)
    return np.stack(poses)


def brain_of_all(images: Sequence[Distorted], own: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Return the brain as any of the images shows it, on the grid of the first one."""
    first = images[0].image
    whole = own.copy()
    for one, pose in zip(images[1:], poses[1:], strict=True):
        to_other = np.linalg.inv(one.image.affine) @ pose @ first.affine
        whole |= moved_mask(brain_mask(one.image.data), to_other, own.shape)
    return whole


def normalised(image: Image, brain: np.ndarray, first: Image, pose: np.ndarray) -> Image:
    """Scale an image to a median of one in the brain."""
    points = apply_affine(pose, apply_affine(first.affine, np.argwhere(brain)))
    values = image.spline.sample(points)
    values = values[np.isfinite(values)]
    middle = float(np.median(values)) if values.size else 0.0
    if not middle > 0:
        middle = float(np.abs(image.data).max()) or 1.0
    return Image(np.asarray(image.data, np.float32) / np.float32(middle), image.affine)

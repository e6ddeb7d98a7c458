# SPDX-License-Identifier: Apache-2.0
"""Computing a brain mask, if none is given."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import scipy

from eddymotion.images.grid import block_means

log = logging.getLogger(__name__)

PLAUSIBLE_FRACTION = (0.02, 0.75)
"""A brain takes up at least and at most this part of the field of view."""

COARSE_VOXELS = 56
"""About as many voxels along an axis as finding a brain needs: 4 mm in 224."""

BRIDGE_PART = 0.05
"""What hangs on the brain by less than twice this part of its size is no brain: eyes, mouth."""

SHADING_PART = 0.2
"""Width, as part of the size of the head, of what counts as shading by the coils."""

FLAT_THRESHOLD = 0.45
"""Fraction of the local mean above which the second method finds brain."""

LEAST_AGREEMENT = 0.85
"""Dice overlap of the two, below which one of them is wrong. Ten real series: 0.94 to 0.99."""

TIGHT_PART, TIGHT = 0.1, 0.95
"""A mask that agrees so well once it is wider by this part of the size of the brain is only tight:
points of the rim are missed, but poses are as good. Three voxels of 4 mm less all around give
0.99, a third of a brain less 0.89 at most."""


def brain_mask(reference: np.ndarray) -> np.ndarray:
    """Find the brain in a mean b=0 image.

    The way of DIPY's ``median_otsu`` first: a median filter, then Otsu's threshold. Where that
    fails or its answer cannot be a brain (noise, a cropped head), a threshold on the smoothed
    image; at last every voxel that is not zero. A mask that is too large costs little here: it
    only says where registration looks.

    Parameters
    ----------
    reference : (X, Y, Z) array
        Mean b=0 image.

    Returns
    -------
    (X, Y, Z) bool array
        One connected piece without holes, unless nothing plausible was found; never empty if
        `reference` is not.
    """
    candidates = {
        "median_otsu": _median_otsu,
        "smoothed threshold": _smoothed_threshold,
        "nonzero voxels": _nonzero,
    }
    for name, candidate in candidates.items():
        try:
            mask = _solid(candidate(reference))
        except (ValueError, IndexError, RuntimeError) as error:
            log.debug("brain mask: %s failed: %s", name, error)
            continue
        if PLAUSIBLE_FRACTION[0] <= mask.mean() <= PLAUSIBLE_FRACTION[1]:
            log.debug("brain mask: %s, %d voxels", name, mask.sum())
            return mask
    log.warning("brain mask: found no plausible brain; every voxel with signal is used")
    return _nonzero(reference)


def _median_otsu(reference: np.ndarray) -> np.ndarray:
    """Threshold a median-filtered image, as DIPY does, on a coarse grid where it is large.

    The median takes nearly all the time, and is there to remove what is small. On axes of many
    voxels it looks at three blocks instead of five voxels: as far, when a block is two voxels.
    The number of voxels decides, not their size, since heads of any size fill the field of view.
    The image is brought back to the full grid, not the mask: the contour stays smooth.
    """
    from dipy.segment.threshold import otsu  # all of dipy.segment.mask takes 0.3 s to import

    coarse, factors = _median_filtered(reference)
    with np.errstate(divide="ignore", invalid="ignore"):  # of an image of one value
        threshold = otsu(coarse)
    return _on_full_grid(coarse, factors, reference.shape) > threshold


def _median_filtered(reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image without small details, on a coarse grid, and voxels per block."""
    factors = np.maximum(np.round(np.array(reference.shape) / COARSE_VOXELS), 1).astype(int)
    coarse = _block_means(reference, factors)
    size = tuple(np.where(factors > 1, 3, 5))
    return _without_small(coarse.tobytes(), coarse.shape, size), factors


@lru_cache(maxsize=1)
def _without_small(voxels: bytes, shape: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """Filter twice by a median; kept, since both opinions on a mask ask for the same."""
    image = np.frombuffer(voxels, np.float32).reshape(shape)
    for _ in range(2):
        image = median_filtered(image, size)
    image.flags.writeable = False
    return image


def median_filtered(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Take the median of a box of an odd number of voxels (float32), in a fifth of SciPy's time.

    Integers in the order of the numbers are divided faster than the numbers.
    """
    margins = [(n // 2, n // 2) for n in size]
    padded = np.pad(_in_order(image.view(np.int32)), margins, "symmetric")
    boxes = np.lib.stride_tricks.sliding_window_view(padded, size)
    middle, medians = int(np.prod(size)) // 2, np.empty(image.shape, np.int32)
    row = np.empty((*image.shape[1:], int(np.prod(size))), np.int32)
    for median, box in zip(medians, boxes, strict=True):
        row.reshape(box.shape)[...] = box
        row.partition(middle, axis=-1)
        median[...] = row[..., middle]
    return _in_order(medians).view(np.float32)


def _in_order(bits: np.ndarray) -> np.ndarray:
    """Turn the bits of float32 numbers into integers of the same order, or back again.

    Those of negative numbers grow with their size: all but the sign are inverted.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _block_means(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Average blocks of voxels; the last blocks repeat the edge."""
    short = -np.array(image.shape) % factors
    whole = np.pad(np.asarray(image, np.float32), [(0, n) for n in short], mode="edge")
    return block_means(whole, factors)


def _on_full_grid(coarse: np.ndarray, factors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate linearly between the centres of blocks."""
    full = coarse
    for axis in np.flatnonzero(factors > 1):
        places = (np.arange(shape[axis]) + 0.5) / factors[axis] - 0.5
        places = np.clip(places, 0, coarse.shape[axis] - 1)
        below = np.minimum(places.astype(int), max(coarse.shape[axis] - 2, 0))
        above = np.minimum(below + 1, coarse.shape[axis] - 1)
        share = (places - below).reshape([-1 if k == axis else 1 for k in range(3)])
        full = full.take(below, axis) * (1 - share) + full.take(above, axis) * share
    return full.astype(coarse.dtype)


def _smoothed_threshold(reference: np.ndarray) -> np.ndarray:
    smooth = scipy.ndimage.gaussian_filter(np.asarray(reference, dtype=float), 2.0)
    low, high = np.percentile(smooth, [5, 98])
    return smooth > low + 0.25 * (high - low)


def _nonzero(reference: np.ndarray) -> np.ndarray:
    return np.asarray(reference) > 0


def _solid(mask: np.ndarray) -> np.ndarray:
    """Keep the largest piece, fill its holes, and cut off what hangs on it by little.

    Holes are filled slice by slice, along all axes: where the coils leave the middle of the head
    dark, the brainstem is a hole that opens downwards. Eyes, mouth and nose hang on a brain.
    """
    piece = _largest_piece(mask)
    box = _around(piece)
    whole = np.zeros_like(piece)
    whole[box] = _without_holes_and_bridges(piece[box])
    return whole


def _around(mask: np.ndarray) -> tuple[slice, ...]:
    """Find the box of what a mask (X, Y, Z) marks, one voxel wider where the image is."""
    (box,) = scipy.ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(along.start - 1, 0), along.stop + 1) for along in box)


def _without_holes_and_bridges(piece: np.ndarray) -> np.ndarray:
    """Do what :func:`_solid` says with one piece that an image was cut around."""
    solid = scipy.ndimage.binary_fill_holes(piece)
    filled = solid.copy()
    for axis in range(3):
        filled |= _holes_in_slices(solid, axis)
    width = round(BRIDGE_PART * float(np.cbrt(filled.sum())))
    core = (
        scipy.ndimage.binary_erosion(filled, iterations=width, border_value=1) if width else filled
    )
    if scipy.ndimage.label(core)[1] < 2:
        return filled
    return scipy.ndimage.binary_dilation(_largest_piece(core), iterations=width + 2, mask=filled)


def _holes_in_slices(mask: np.ndarray, axis: int) -> np.ndarray:
    """Find enclosed regions in each slice across an axis, all slices at once for speed."""
    neighbours = scipy.ndimage.generate_binary_structure(3, 1)
    np.moveaxis(neighbours, axis, 0)[[0, 2]] = False
    pieces, n_pieces = scipy.ndimage.label(~mask, neighbours)
    enclosed = np.arange(n_pieces + 1) > 0
    for other in {0, 1, 2} - {axis}:
        enclosed[np.take(pieces, [0, -1], axis=other)] = False
    return enclosed[pieces]


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    labels, n_pieces = scipy.ndimage.label(mask)
    if n_pieces == 0:
        raise ValueError("empty mask")
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def moved_mask(mask: np.ndarray, mapping: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Read a mask on a grid whose voxels a matrix maps to its own: (X, Y, Z) bool."""
    shares = mask.astype(np.float32)
    moved = scipy.ndimage.affine_transform(shares, mapping[:3, :3], mapping[:3, 3], shape, order=1)
    return moved > 0.5


def mask_issue(reference: np.ndarray, mask: np.ndarray) -> str | None:
    """Compare a mask with a second opinion, and say if they differ much.

    The second opinion is the way of the first on an image whose shading by the coils is taken
    out: it has what lies in the dark, and more of the skin. A mask that is only tighter does no
    harm; one that lacks a part of the brain does.

    Parameters
    ----------
    reference : (X, Y, Z) array
        Mean b=0 image.
    mask : (X, Y, Z) bool array
    """
    try:
        other = _solid(_without_shading(reference))
    except (ValueError, IndexError, RuntimeError):
        return None
    if (
        _overlap(mask, other) > LEAST_AGREEMENT
        or _overlap(_grown_into(mask, other), other) > TIGHT
    ):
        return None
    both = (mask & other).sum()
    return (
        f"the brain mask has {mask.sum()} voxels, a second method finds {other.sum()}, with "
        f"{both} in common; check the outline, and give a mask (--brain-mask) if it is not the "
        "brain"
    )


def _overlap(mask: np.ndarray, other: np.ndarray) -> float:
    """Dice overlap of two masks."""
    return float(2 * (mask & other).sum() / (mask.sum() + other.sum()))


def _grown_into(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Grow a mask into another one that may only be wider."""
    width = round(TIGHT_PART * float(np.cbrt(other.sum())))
    return mask | scipy.ndimage.binary_dilation(mask, iterations=max(width, 1), mask=mask | other)


def _without_shading(reference: np.ndarray) -> np.ndarray:
    """Threshold an image divided by its own low frequencies in the head."""
    from dipy.segment.threshold import otsu

    coarse, factors = _median_filtered(reference)
    threshold = otsu(coarse)
    head = (coarse > threshold).astype(np.float32)
    coarse = np.maximum(coarse - np.median(coarse[coarse <= threshold]), 0.0)  # noise floor
    sigma = SHADING_PART * np.cbrt(head.sum())
    weights = np.maximum(_widely_smoothed(head, sigma), 1e-3)
    shading = _widely_smoothed(coarse * head, sigma) / weights
    flat = coarse / np.maximum(shading, 0.1 * shading.max())
    return _on_full_grid(flat, factors, reference.shape) > FLAT_THRESHOLD


def _widely_smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth as SciPy's ``gaussian_filter``, faster where the filter is as wide as the image."""
    for axis, n in enumerate(image.shape):
        matrix = scipy.ndimage.gaussian_filter1d(np.eye(n, dtype=image.dtype), sigma, axis=0)
        image = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    return image

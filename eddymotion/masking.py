"""The brain mask where none is given."""

from __future__ import annotations

import logging

import numpy as np
from scipy import ndimage

log = logging.getLogger(__name__)

PLAUSIBLE_FRACTION = (0.02, 0.75)
"""A brain takes up at least and at most this part of the field of view."""


def brain_mask(reference: np.ndarray) -> np.ndarray:
    """Find the brain in a mean b=0 image.

    DIPY's ``median_otsu`` first. Where it fails or its answer cannot be a brain (noise, a cropped
    head), a threshold on the smoothed image; at last every voxel that is not zero. A mask that is
    too large costs little here: it only says where registration looks.

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
    from dipy.segment.mask import median_otsu

    _, mask = median_otsu(reference, median_radius=2, numpass=2, finalize_mask=True)
    return mask


def _smoothed_threshold(reference: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.asarray(reference, dtype=float), 2.0)
    low, high = np.percentile(smooth, [5, 98])
    return smooth > low + 0.25 * (high - low)


def _nonzero(reference: np.ndarray) -> np.ndarray:
    return np.asarray(reference) > 0


def _solid(mask: np.ndarray) -> np.ndarray:
    """Keep the largest piece and fill its holes."""
    labels, n_pieces = ndimage.label(mask)
    if n_pieces == 0:
        raise ValueError("empty mask")
    sizes = np.bincount(labels.ravel())[1:]
    return ndimage.binary_fill_holes(labels == 1 + np.argmax(sizes))

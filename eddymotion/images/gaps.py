# SPDX-License-Identifier: Apache-2.0
"""Specks: voxels without a number, or with one that no head shows, among others that are sound."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import scipy

from eddymotion.images.zeros import solid

log = logging.getLogger(__name__)

NEIGHBOURS = 0.7
"""Voxels: width of the mean that fills a speck."""

BRIGHTEST, SPIKE_TIMES = 0.999, 10.0
"""A spike is brighter than this quantile of the voxels by at least this factor. In 13 real series
the brightest voxel of a volume is at most 4.2 times as bright."""

ABOVE_NEIGHBOURS = 4.0
"""And brighter than any voxel around it by this factor: no image is that sharp."""

EVERY = 3
"""Of the voxels along each axis, those used to determine what is bright."""


def spikes(volume: np.ndarray) -> np.ndarray | None:
    """Find voxels that are far brighter than all around them, (X, Y, Z) bool; None for none.

    Those that touch are one spike, and are compared with what lies around all of them.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Finite.
    """
    some = volume[::EVERY, ::EVERY, ::EVERY]
    bright = np.quantile(some[some != 0], BRIGHTEST) if some.any() else np.inf
    if not 0 < SPIKE_TIMES * bright < volume.max():
        return None
    above = volume > SPIKE_TIMES * bright
    around = scipy.ndimage.maximum_filter(np.where(above, 0, volume), size=3, mode="nearest")
    pieces, _ = scipy.ndimage.label(above, np.ones((3, 3, 3), bool))
    tissue = np.unique(pieces[above & (volume <= ABOVE_NEIGHBOURS * around.astype(float))])
    found = above & ~np.isin(pieces, tissue)
    return found if found.any() else None


def filled_volume(volume: np.ndarray, name: str) -> np.ndarray:
    """Return an image of one volume (X, Y, Z) without gaps, and say how many voxels were some."""
    n_gaps = volume.size - int(np.isfinite(volume).sum())
    if not n_gaps:
        return volume
    log.warning(
        "%s: %d voxels are NaN or infinite; they are filled from their surroundings, or set to "
        "zero in large clusters", name, n_gaps,
    )  # fmt: skip
    filled = np.array(volume)
    fill_missing(filled)
    return filled


def fill_missing(volume: np.ndarray) -> np.ndarray:
    """Fill specks of a volume that hold no number, in place, and set pieces to zero.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Changed.

    Returns
    -------
    (X, Y, Z) bool array
        The pieces (:func:`~eddymotion.images.zeros.solid`).
    """
    gaps = ~np.isfinite(volume)
    if not gaps.any():
        return gaps
    fill_gaps(volume, gaps)
    pieces = solid(gaps)
    volume[pieces] = 0
    return pieces


def fill_gaps(volume: np.ndarray, gaps: np.ndarray) -> None:
    """Give specks of a volume that hold no number the mean of what lies around them, in place.

    A speck set to zero is an edge that stays with the scanner. What fills a cube
    (:func:`~eddymotion.images.zeros.solid`) is left alone.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Changed.
    gaps : (X, Y, Z) bool array
        Where it holds no number.
    """
    specks = gaps & ~solid(gaps)
    known = _smooth(~gaps)
    around = _smooth(np.where(gaps, 0, volume))[specks]
    volume[specks] = around / np.maximum(known[specks], np.finfo(np.float32).tiny)


def zero_specks(volumes: Iterable[np.ndarray], brain: np.ndarray) -> np.ndarray:
    """Find voxels of the brain that no volume shows: zero in all, and cut off from the background.

    Parameters
    ----------
    volumes : iterable of (X, Y, Z) array
    brain : (X, Y, Z) bool array

    Returns
    -------
    (X, Y, Z) bool array
        A piece of such voxels that fills a cube anywhere is none of them.
    """
    zero = np.ones(brain.shape, bool)
    for volume in volumes:
        zero &= volume == 0
        if not (zero & brain).any():
            return zero & brain
    pieces, _ = scipy.ndimage.label(zero)
    cut = np.unique(pieces[solid(zero) | (zero & ~brain)])
    return zero & ~np.isin(pieces, cut)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Weigh each voxel's neighbours by their distance; nothing lies beyond the box."""
    single = np.asarray(image, np.float32)
    return scipy.ndimage.gaussian_filter(single, NEIGHBOURS, mode="constant", radius=1)

"""Slices that lost signal.

A head that moves during the diffusion gradients dephases whole slices. At points ``x`` of the
brain that fall close to the middle of a slice of a volume, what the volume shows is compared with
its leave-one-out prediction::

    ratio = Σ y ŷ / Σ ŷ²        over the points in the slice

which is near one, lower where signal is lost. It is divided by the median of its volume (gain) and
turned into a robust z-score over the volumes, since each slice has its own scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Z_THRESHOLD = -3.5
RATIO_THRESHOLD = 0.9
"""A slice is an outlier below both: far from what is usual for it, and at least 10 % of its
signal gone."""

OFF_MIDDLE = 0.2
"""Points so far (slices) from the middle of a slice count: interpolation mixes in little of the
slices beside it there."""

MIN_POINTS_IN_SLICE = 25
"""Slices with fewer points are not judged."""

MIN_VOLUMES = 6
"""With fewer volumes a robust spread over them means nothing."""

MIN_SPREAD = 0.01
"""Ratios are not known better than this, however little they scatter."""

LEAK = 0.35
"""A slice beside a worse one is an outlier of its own only if it lost more than this part of what
the other lost; the rest is what interpolation mixes in."""


@dataclass(frozen=True, eq=False)
class SliceOutliers:
    """Scores of all slices of all volumes.

    Parameters
    ----------
    z : (N, Z) array
        Robust z-score; NaN where not judged.
    ratio : (N, Z) array
        Observed over predicted signal, normalised by volume; NaN where not judged.
    """

    z: np.ndarray
    ratio: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """True for outliers, (N, Z)."""
        with np.errstate(invalid="ignore"):
            low = (self.z < Z_THRESHOLD) & (self.ratio < RATIO_THRESHOLD)
        lost = np.where(low, 1 - self.ratio, 0.0)
        beside = np.zeros_like(lost)
        beside[:, 1:] = lost[:, :-1]
        beside[:, :-1] = np.maximum(beside[:, :-1], lost[:, 1:])
        return low & (lost > LEAK * beside)


def is_lost(flags: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Whether points lie in a flagged slice or in one beside it, which interpolation mixes with.

    Parameters
    ----------
    flags : (Z,) bool array
        Of one volume.
    height : (V,) array
        Where the points are along the slice axis of the volume, in slices.
    """
    index = np.rint(height).astype(int)
    inside = (index >= 0) & (index < len(flags))
    return inside & ndimage.binary_dilation(flags)[np.clip(index, 0, len(flags) - 1)]


def slice_sums(
    observed: np.ndarray, predicted: np.ndarray, height: np.ndarray, n_slices: int
) -> np.ndarray:
    """Compare a volume with its prediction, slice by slice.

    Parameters
    ----------
    observed, predicted : (V,) array
        NaN where not known.
    height : (V,) array
        Where the points are along the slice axis of the volume, in slices.
    n_slices : int

    Returns
    -------
    (Z,) array
        Observed over predicted signal; NaN with too few points.
    """
    index = np.rint(height).astype(int)
    counted = (np.abs(height - index) < OFF_MIDDLE) & (index >= 0) & (index < n_slices)
    counted &= np.isfinite(observed) & np.isfinite(predicted)
    index, y, p = (values[counted] for values in (index, observed, predicted))
    y, p = y.astype(float), p.astype(float)
    products, power, count = (
        np.bincount(index, weights, n_slices) for weights in (y * p, p * p, None)
    )
    enough = (count >= MIN_POINTS_IN_SLICE) & (power > 0)
    return np.divide(products, power, where=enough, out=np.full(n_slices, np.nan))


def score_slices(ratio: np.ndarray) -> SliceOutliers:
    """Turn ratios (N, Z) into scores; rows that are NaN stay so."""
    ratio = ratio.copy()
    usable = np.flatnonzero(np.isfinite(ratio).any(axis=1))
    judged = np.isfinite(ratio).sum(axis=0) >= MIN_VOLUMES
    ratio[:, ~judged] = np.nan
    z = np.full_like(ratio, np.nan)
    block = ratio[np.ix_(usable, judged)]
    if not block.size:
        return SliceOutliers(z, ratio)
    gains = [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else 1.0 for row in block]
    block = block / np.array(gains)[:, None]
    center = np.nanmedian(block, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(block - center), axis=0)
    ratio[np.ix_(usable, judged)] = block
    z[np.ix_(usable, judged)] = (block - center) / np.maximum(spread, MIN_SPREAD)
    return SliceOutliers(z, ratio)

"""Slices that lost signal.

A head that moves during the diffusion gradients dephases whole slices. Each slice of each original
volume is compared with its leave-one-out prediction, brought to the pose of that volume::

    ratio = Σ y ŷ / Σ ŷ²        over the brain in the slice

which is near one, lower where signal is lost. It is divided by the median of its volume (gain) and
turned into a robust z-score over the volumes, since each slice has its own scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.geometry import Motion
from eddymotion.kernels import kernel_order, sample_grid, spline_coefficients
from eddymotion.parallel import parallel_map
from eddymotion.resampling import voxel_mapping

Z_THRESHOLD = -3.5
RATIO_THRESHOLD = 0.9
"""A slice is an outlier below both: far from what is usual for it, and at least 10 % of its
signal gone."""

MIN_VOXELS = 40
"""Slices with less brain than this are not judged."""

MIN_VOLUMES = 6
"""With fewer volumes a robust spread over them means nothing."""


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
            return (self.z < Z_THRESHOLD) & (self.ratio < RATIO_THRESHOLD)


def find_outlier_slices(
    dwi: DWI,
    motion: Motion,
    predicted: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    n_threads: int = 1,
) -> SliceOutliers:
    """Score the slices of the diffusion-weighted volumes.

    Parameters
    ----------
    dwi : DWI
        The original series; slices are its third image axis.
    motion : Motion
    predicted : (X, Y, Z, N) array
        Leave-one-out predictions in the reference frame.
    mask : (X, Y, Z) bool array, optional
        Where to compare, in the reference frame; the brain when not given.
    n_threads : int

    Returns
    -------
    SliceOutliers
    """
    dwis = dwi.gradients.dwis
    where = dwi.mask if mask is None else mask
    ratio = np.full((len(dwi), dwi.shape[2]), np.nan)

    def score(volume: int) -> np.ndarray:
        known = where & np.isfinite(predicted[..., volume])
        in_brain = np.where(known, predicted[..., volume], 0.0)
        expected = _in_volume(in_brain, dwi, motion[volume])
        products = (expected * dwi.signal[..., volume]).sum(axis=(0, 1), dtype=float)
        power = (expected**2).sum(axis=(0, 1), dtype=float)
        enough = (expected > 0.1 * expected.max()).sum(axis=(0, 1)) >= MIN_VOXELS
        return np.divide(products, power, where=enough, out=np.full(len(power), np.nan))

    usable = [v for v in dwis if np.isfinite(predicted[..., v][where]).mean() > 0.5]
    if len(usable) < MIN_VOLUMES:
        return SliceOutliers(ratio.copy(), ratio)
    ratio[usable] = parallel_map(score, usable, n_threads=n_threads)
    judged = np.isfinite(ratio[usable]).sum(axis=0) >= MIN_VOLUMES
    ratio[:, ~judged] = np.nan
    z = np.full_like(ratio, np.nan)
    block = ratio[np.ix_(usable, judged)]
    if block.size:
        block = block / np.nanmedian(block, axis=1, keepdims=True)
        center = np.nanmedian(block, axis=0)
        spread = 1.4826 * np.nanmedian(np.abs(block - center), axis=0) + 1e-6
        ratio[np.ix_(usable, judged)] = block
        z[np.ix_(usable, judged)] = (block - center) / spread
    return SliceOutliers(z, ratio)


def _in_volume(reference: np.ndarray, dwi: DWI, matrix: np.ndarray) -> np.ndarray:
    """Bring an image of the reference frame to the pose of a volume."""
    mapping = voxel_mapping(dwi.affine, np.linalg.inv(matrix))
    volume = np.empty(dwi.shape[::-1], np.float32)
    coefficients = spline_coefficients(np.ascontiguousarray(reference.T))
    sample_grid(coefficients, kernel_order(mapping), 0.0, volume)
    return volume.T

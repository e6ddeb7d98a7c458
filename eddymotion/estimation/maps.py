# SPDX-License-Identifier: Apache-2.0
"""Maps of SNR and CNR: signal and contrast relative to the residual of the model.

As FSL eddy's maps: for b=0 the signal-to-noise ratio, the mean over the standard deviation of the
residual; for each shell the contrast-to-noise ratio, the standard deviation of the prediction over
the directions over that of the residual. Volumes are held out when they are predicted, so that
the residual is not too small by the fit; it contains the error of the prediction itself. Lost
slices count neither as signal nor as residual.
"""

from __future__ import annotations

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.data.series import Series
from eddymotion.estimation.blocks import Blocks
from eddymotion.estimation.held_out import fitted, predict_lost
from eddymotion.estimation.outliers import SliceOutliers
from eddymotion.estimation.replacement import Replaced, affected_voxels
from eddymotion.machine.parallel import Progress, parallel_map, silent
from eddymotion.models import Model

MIN_VOLUMES = 3
"""With fewer volumes a standard deviation over them means nothing."""


def cnr_maps(
    series: Series,
    model: Model,
    *,
    outliers: SliceOutliers | None = None,
    residuals: np.ndarray | None = None,
    n_threads: int = 1,
    progress: Progress = silent,
) -> np.ndarray:
    """Map SNR of the b=0 volumes and CNR of each shell.

    Parameters
    ----------
    series : DWI, Resampled or Replaced
        Aligned. The latter two are read block by block, and never held.
    model : Model
        Fitted, as in :class:`~eddymotion.estimation.quality.Quality`; otherwise it is fitted to
        the brain of the first block.
    outliers : SliceOutliers, optional
        Slices that count for nothing; those of the series where it is a
        :class:`~eddymotion.estimation.replacement.Replaced`.
    residuals : (X, Y, Z, N) float32 array, optional
        Filled with what is observed minus what the other volumes predict: NaN where they predict
        nothing. May be a memory-mapped file.
    n_threads : int
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    (X, Y, Z, 1 + shells) float32 array
        First the SNR, then the CNR from the lowest b-value up; without shells that of all
        diffusion-weighted volumes together. Zero outside the mask, and where too few volumes are
        known.
    """
    if isinstance(series, Replaced) and outliers is None:
        outliers = series.outliers
    blocks, gradients = Blocks.of(series, n_threads), series.gradients
    groups = comparable_groups(gradients)
    maps = np.zeros((*series.shape, 1 + len(groups)), np.float32, order="F")
    slabs = list(blocks.slabs())
    for slab in progress(slabs, "contrast and residuals", len(slabs)):
        brain = series.mask[:, :, slab].T.ravel()
        voxels = np.flatnonzero(brain) if residuals is None else np.arange(len(brain))
        if not len(voxels):
            continue
        observed = blocks.read(slab, voxels)
        if brain.any():
            model = fitted(model, observed[brain[voxels]], gradients)
        lost = _lost(blocks, slab, voxels, outliers)
        predicted = predict_lost(observed, lost, gradients, model)
        left = observed - predicted
        if residuals is not None:
            part = residuals[:, :, slab]
            part[...] = left.T.reshape(len(gradients), *part.shape[2::-1]).T
        contrasts = (cnr(predicted, left, group, lost) for group in groups)
        ratios = np.stack([snr(observed, gradients, lost), *contrasts], axis=1)
        values = np.zeros((len(brain), ratios.shape[1]), np.float32)
        values[voxels] = ratios
        values[~brain] = 0.0
        x, y, _ = series.shape
        maps[:, :, slab] = values.T.reshape(ratios.shape[1], -1, y, x).T
    return maps


def snr(observed: np.ndarray, gradients: Gradients, lost: np.ndarray | None = None) -> np.ndarray:
    """Mean of the b=0 volumes over the deviation of one from it, (…).

    Parameters
    ----------
    observed : (…, N) array
    gradients : Gradients
    lost : (…, N) bool array, optional
        Values that do not count.
    """
    values = _known(observed, gradients.b0s, lost)
    return _ratio(_mean(values), _deviation(values))


def cnr(
    predicted: np.ndarray,
    residual: np.ndarray,
    volumes: np.ndarray,
    lost: np.ndarray | None = None,
) -> np.ndarray:
    """Deviation of the prediction over some volumes over that of the residual, (…).

    Parameters
    ----------
    predicted, residual : (…, N) array
    volumes : index array
        A shell.
    lost : (…, N) bool array, optional
        Values that do not count.

    References
    ----------
    Bastiani et al. (2019), NeuroImage 184:801.
    """
    signal, left = (_known(values, volumes, lost) for values in (predicted, residual))
    return _ratio(_deviation(signal), _deviation(left))


def _known(values: np.ndarray, volumes: np.ndarray, lost: np.ndarray | None) -> np.ndarray:
    chosen = values[..., volumes]
    return chosen if lost is None else np.where(lost[..., volumes], np.nan, chosen)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)


def _deviation(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the known values of each voxel; NaN with too few."""
    known = np.isfinite(values)
    n_known = known.sum(axis=-1)
    off = values - _mean(values)[..., None].astype(values.dtype)
    np.copyto(off, 0.0, where=~known)
    deviation = np.sqrt(np.einsum("...n,...n->...", off, off) / np.maximum(n_known - 1, 1))
    return np.where(n_known >= MIN_VOLUMES, deviation, np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    usable = np.isfinite(above) & (np.nan_to_num(below) > 0)
    return np.divide(above, below, where=usable, out=np.zeros_like(above))


def _lost(
    blocks: Blocks, slab: slice, voxels: np.ndarray, outliers: SliceOutliers | None
) -> np.ndarray:
    """Where a volume shows more of its lost slices than counts, or has a gap, (V, N)."""
    lost = np.zeros((len(blocks.series), len(voxels)), bool)
    n_voxels = np.prod(blocks.series.shape[:2]) * (slab.stop - slab.start)

    def mark(volume: int) -> None:
        where = affected_voxels(blocks, slab, volume, outliers)
        marked = np.zeros(n_voxels, bool)
        marked[where.voxels[where.weight > 0]] = True
        lost[volume] = marked[voxels]

    parallel_map(mark, range(len(lost)), n_threads=blocks.n_threads)
    return lost.T

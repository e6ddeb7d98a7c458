"""How well the held-out volumes agree with their predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.estimation.lovo import ENOUGH, predict
from eddymotion.estimation.outliers import SliceOutliers, find_outlier_slices
from eddymotion.geometry import Motion
from eddymotion.models import Model, get_model
from eddymotion.parallel import one_blas_thread
from eddymotion.resampling import covered_mask, resample


@dataclass(frozen=True, eq=False)
class Quality:
    """Agreement of each volume with its leave-one-out prediction.

    Parameters
    ----------
    correlation : (N,) array
        Pearson, over the brain; NaN without a prediction.
    r2 : (N,) array
        Part of the variance over the brain that the prediction explains; NaN without one.
    outliers : SliceOutliers
        Slices that lost signal.
    """

    correlation: np.ndarray
    r2: np.ndarray
    outliers: SliceOutliers


def assess(
    dwi: DWI, motion: Motion, model: Model | str = "auto", *, n_threads: int = 1
) -> Quality:
    """Predict each volume from the others under a motion, and compare.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
    model : Model or str
        As in :func:`eddymotion.estimate_motion`.
    n_threads : int

    Returns
    -------
    Quality
    """
    if isinstance(model, str):
        model = get_model(model, dwi.gradients)
    mask = covered_mask(dwi, motion)
    aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
    with one_blas_thread():
        predicted = predict(aligned, model)
        pairs = ((aligned.signal[..., i], predicted[..., i]) for i in range(len(dwi)))
        scores = [agreement(observed[mask], expected[mask]) for observed, expected in pairs]
    correlation, r2 = np.array(scores).T
    outliers = find_outlier_slices(dwi, motion, predicted, mask=mask, n_threads=n_threads)
    return Quality(correlation, r2, outliers)


def agreement(observed: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Pearson correlation of two (V,) arrays, and the variance of one that the other explains.

    NaN where less than half of the voxels have a prediction.
    """
    known = np.isfinite(predicted)
    if not known.mean() > ENOUGH:
        return np.nan, np.nan
    observed, predicted = observed[known], predicted[known]
    y = observed - observed.mean(dtype=float)
    p = predicted - predicted.mean(dtype=float)
    power = y @ y
    spread = np.sqrt(power * (p @ p))
    if not spread > 0:  # constant, or no prediction
        return np.nan, np.nan
    residual = (observed - predicted).astype(float)
    return float(y @ p / spread), float(1 - residual @ residual / power)

"""How well the held-out volumes agree with their predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.estimation.lovo import predict
from eddymotion.estimation.outliers import SliceOutliers, find_outlier_slices
from eddymotion.geometry import Motion
from eddymotion.models import Model
from eddymotion.parallel import one_blas_thread
from eddymotion.resampling import resample


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


def assess(dwi: DWI, motion: Motion, model: Model, *, n_threads: int = 1) -> Quality:
    """Predict each volume from the others under a motion, and compare.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
    model : Model
    n_threads : int

    Returns
    -------
    Quality
    """
    aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
    with one_blas_thread():
        predicted = predict(aligned, model)
        correlation, r2 = agreement(aligned.signal[dwi.mask], predicted[dwi.mask])
    outliers = find_outlier_slices(dwi, motion, predicted, n_threads=n_threads)
    return Quality(correlation, r2, outliers)


def agreement(observed: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson correlation and R² of each column of two (V, N) arrays."""
    y = observed - observed.mean(axis=0, dtype=float)
    p = predicted - predicted.mean(axis=0, dtype=float)
    spread = np.sqrt((y**2).sum(axis=0) * (p**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (y * p).sum(axis=0) / spread
        r2 = 1 - ((observed - predicted) ** 2).sum(axis=0, dtype=float) / (y**2).sum(axis=0)
    return correlation, r2

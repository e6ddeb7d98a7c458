"""How well the held-out volumes agree with their predictions.

Judged at random points of the brain, off the grid, at which all volumes are read: neither an
aligned copy of the series nor one of its predictions is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.dataset import DWI
from eddymotion.estimation.outliers import SliceOutliers, is_lost, score_slices, slice_sums
from eddymotion.geometry import Motion
from eddymotion.gradients import Gradients
from eddymotion.models import AverageModel, Model, get_model
from eddymotion.parallel import one_blas_thread, parallel_map
from eddymotion.pyramid import jittered_points

ENOUGH = 0.5
"""Part of the brain in which a volume must be predicted to count as predicted."""

N_POINTS = 60_000

MAX_PASSES = 3
"""Outlier slices spoil the predictions of the others; they are replaced and sought again."""


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


def predict(signal: np.ndarray, gradients: Gradients, model: Model) -> np.ndarray:
    """Predict each volume of an aligned signal (…, N) from the others; NaN where they do not tell.

    b=0 volumes are predicted by the mean of the other b=0 volumes, the others by `model`.
    """
    predicted = model.leave_one_out(signal, gradients)
    b0s = gradients.b0s
    if len(b0s):
        predicted[..., b0s] = AverageModel().leave_one_out(signal[..., b0s], gradients.select(b0s))
    return predicted


def assess(
    dwi: DWI,
    motion: Motion,
    model: Model | str = "auto",
    *,
    seed: int = 0,
    n_threads: int = 1,
) -> Quality:
    """Predict each volume from the others under a motion, and compare.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
    model : Model or str
        As in :func:`eddymotion.estimate_motion`.
    seed : int
        Of the random points.
    n_threads : int

    Returns
    -------
    Quality
    """
    if isinstance(model, str):
        model = get_model(model, dwi.gradients)
    gradients = dwi.gradients.rotated(motion.rotations)
    signal, heights = _read(dwi, motion, seed, n_threads)
    observed = signal
    flagged = np.zeros((len(dwi), dwi.shape[2]), bool)
    for _ in range(MAX_PASSES):
        with one_blas_thread():
            predicted = predict(signal, gradients, model)
        outliers = _outlier_slices(dwi, observed, predicted, heights, n_threads)
        if not (outliers.flagged & ~flagged).any():
            break
        flagged = outliers.flagged
        signal = _replace_flagged(observed, predicted, heights, flagged)
    pairs = zip(observed.T, predicted.T, strict=True)
    scores = parallel_map(lambda pair: agreement(*pair), pairs, n_threads=n_threads)
    correlation, r2 = np.array(scores).T
    return Quality(correlation, r2, outliers)


def _read(dwi: DWI, motion: Motion, seed: int, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Read all volumes at points that lie inside all of them: signal and slice heights (V, N)."""
    random = np.random.default_rng(seed)
    points = jittered_points(dwi.mask, dwi.affine, N_POINTS, random)
    row = np.linalg.inv(dwi.affine)[2]
    values = np.empty((len(dwi), len(points)), np.float32)
    heights = np.empty((len(dwi), len(points)), np.float32)

    def read(volume: int) -> None:
        values[volume] = dwi.volume(volume).spline.sample(points, motion[volume])
        to_height = row @ motion[volume]
        heights[volume] = points @ to_height[:3] + to_height[3]

    parallel_map(read, range(len(dwi)), n_threads=n_threads)
    covered = np.isfinite(values).all(axis=0)
    if covered.mean() < ENOUGH:  # one volume must not decide for all
        return np.nan_to_num(values).T, heights.T
    return values[:, covered].T, heights[:, covered].T


def _outlier_slices(
    dwi: DWI, observed: np.ndarray, predicted: np.ndarray, heights: np.ndarray, n_threads: int
) -> SliceOutliers:
    ratio = np.full((len(dwi), dwi.shape[2]), np.nan)

    def judge(volume: int) -> None:
        columns = observed[:, volume], predicted[:, volume], heights[:, volume]
        ratio[volume] = slice_sums(*columns, dwi.shape[2])

    parallel_map(judge, dwi.gradients.dwis, n_threads=n_threads)
    return score_slices(ratio)


def _replace_flagged(
    observed: np.ndarray, predicted: np.ndarray, heights: np.ndarray, flagged: np.ndarray
) -> np.ndarray:
    """Put the prediction where a volume has lost its signal, (V, N)."""
    signal = observed.copy()
    for volume in np.flatnonzero(flagged.any(axis=1)):
        lost = is_lost(flagged[volume], heights[:, volume])
        lost &= np.isfinite(predicted[:, volume])
        signal[lost, volume] = predicted[lost, volume]
    return signal


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

# SPDX-License-Identifier: Apache-2.0
"""How well held-out volumes agree with their predictions.

They are compared at random points of the brain, off the grid, at which all volumes are read, so
that neither an aligned copy of the series nor its predictions have to be held in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.acquisition import Slicing
from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError, check_kind, renamed
from eddymotion.estimation.held_out import fill_in, filled_with_means, fitted, predict
from eddymotion.estimation.outliers import (
    SliceFit,
    SliceOutliers,
    fit_slices,
    is_lost,
    score_slices,
    slice_heights,
)
from eddymotion.estimation.outliers.misfits import Misfits
from eddymotion.images.grid import transformed
from eddymotion.images.pyramid import SPLINE_VOXELS, crop, jittered_points
from eddymotion.images.stack import REBUILDING, SliceWeights
from eddymotion.machine.parallel import one_blas_thread, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.models import LinearModel, Model, get_model
from eddymotion.wording import short_repr

ENOUGH = 0.5
"""Part of the brain in which a volume must be predicted to count as predicted."""

MIN_COVERED = 0.5
"""A point counts if it lies inside at least this part of the volumes."""

N_POINTS = 60_000
"""Points of the brain at which volumes are compared."""

BOX_EVERY = 16
"""One in this many points is used to find which part of a volume is read."""

MAX_PASSES = 3
"""Outlier slices spoil the predictions of other volumes; so they are held out, and all are sought
again, up to this many times."""


@dataclass(frozen=True, eq=False)
class Quality:
    """Agreement of each volume with its leave-one-out prediction.

    Parameters
    ----------
    correlation : (N,) array
        Pearson, over the brain; NaN without a prediction.
    r2 : (N,) array
        Share of the variance over the brain that the prediction explains; NaN without one.
    outliers : SliceOutliers
        Slices that lost signal.
    model : Model, optional
        The fitted model that predicted the volumes.
    """

    correlation: np.ndarray
    r2: np.ndarray
    outliers: SliceOutliers
    model: Model | None

    __repr__ = short_repr


@renamed(seed="random_seed")
def assess(
    dwi: DWI,
    motion: Motion,
    model: Model | str = "auto",
    *,
    slicing: Slicing | None = None,
    random_seed: int = 0,
    n_threads: int = 1,
) -> Quality:
    """Predict each volume from the others under a motion, and compare.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        With its eddy-current fields, if it has some.
    model : Model or str
        As in :func:`eddymotion.estimate_motion`.
    slicing
        Deprecated, as there.
    random_seed : int
        Of the random points.
    n_threads : int

    Returns
    -------
    Quality

    Raises
    ------
    EddymotionError
        If the motion has another number of volumes, or none of them is diffusion-weighted.
    """
    check_kind(dwi, DWI, "assess")
    check_kind(motion, Motion, "assess")
    motion.check_length(len(dwi), "assess")
    if not len(dwi.gradients.dwis):
        raise EddymotionError(
            f"assess: {dwi!r} has no diffusion-weighted volume, expected some to predict"
        )
    if slicing is not None:
        dwi = described(dwi, slicing=slicing)
    if isinstance(model, str):
        model = get_model(model, dwi.gradients)
    (reading,) = _ReadVolumes.of(dwi, [motion], random_seed, n_threads)
    return _assessed(dwi, reading, model, n_threads)


def assess_both(
    dwi: DWI, motion: Motion, model: Model, *, random_seed: int = 0, n_threads: int = 1
) -> tuple[Quality, Quality]:
    """Compare volumes with their predictions, before and after correction, as :func:`assess`.

    A slice has lost its signal wherever the head was. The slices found after correction therefore
    count before it as well, where none are sought: displaced edges would look like lost signal.
    """
    motions = [Motion.identity(len(dwi)), motion]
    still, moved = _ReadVolumes.of(dwi, motions, random_seed, n_threads)
    after = _assessed(dwi, moved, model, n_threads)
    return _assessed_as_acquired(dwi, still, model, after.outliers, n_threads), after


def _assessed(dwi: DWI, reading: _ReadVolumes, model: Model, n_threads: int) -> Quality:
    """Assess volumes that were read under a motion."""
    motion, gradients = reading.motion, dwi.gradients.rotated(reading.motion.rotations)
    observed, heights = reading.values, reading.heights
    signal = filled_with_means(observed, gradients)
    flagged, lost = np.zeros((len(dwi), dwi.n_slices), bool), np.zeros(observed.shape, bool)
    unplaced = motion.unplaced
    spoils = unplaced is not None
    for _ in range(MAX_PASSES):
        used, predicted = _predict_without(signal, lost, gradients, model)
        outliers = _outlier_slices(dwi, reading, predicted, n_threads)
        outliers = replace(outliers, unplaced=unplaced)
        if not spoils and not (outliers.flagged & ~flagged).any():
            break
        flagged, spoils = outliers.flagged, False
        lost = _lost(observed, heights, outliers)
        signal = _with_predictions(observed, predicted, lost, gradients)
    correlation, r2, kept = _agreements(reading, predicted, outliers, n_threads)
    outliers = replace(outliers, misfits=Misfits.of(kept, dwi.gradients))
    return Quality(correlation, r2, outliers, used)


def _assessed_as_acquired(
    dwi: DWI, reading: _ReadVolumes, model: Model, outliers: SliceOutliers, n_threads: int
) -> Quality:
    """Assess volumes that were read without any correction; see :func:`assess_both`."""
    observed, gradients = reading.values, dwi.gradients
    signal = filled_with_means(observed, gradients)
    lost = np.zeros(observed.shape, bool)
    used, predicted = _predict_without(signal, lost, gradients, model)
    if outliers.flagged.any() or outliers.unplaced is not None:
        lost = _lost(observed, reading.heights, outliers)
        signal = _with_predictions(observed, predicted, lost, gradients)
        used, predicted = _predict_without(signal, lost, gradients, model)
    correlation, r2, _ = _agreements(reading, predicted, outliers, n_threads)
    return Quality(correlation, r2, outliers, used)


def _agreements(
    reading: _ReadVolumes, predicted: np.ndarray, outliers: SliceOutliers, n_threads: int
) -> np.ndarray:
    """Correlations of the volumes, explained variances, and correlations without lost slices."""

    def compare(volume: int) -> tuple[float, float, float]:
        shown, expected = reading.values[:, volume], predicted[:, volume]
        whole, flags = agreement(shown, expected), outliers.flagged[volume]
        if not flags.any():
            return *whole, whole[0]
        lost = is_lost(flags, reading.heights[:, volume])
        kept, _ = agreement(np.where(lost, np.nan, shown), expected)
        return *whole, kept

    volumes = range(predicted.shape[1])
    return np.array(parallel_map(compare, volumes, n_threads=n_threads)).T


def described(dwi: DWI, *, pe_axis: str | None = None, slicing: Slicing | None = None) -> DWI:
    """Put the deprecated arguments `pe_axis` and `slicing` into the series, with a warning."""
    if pe_axis is None and slicing is None:
        return dwi
    warnings.warn(
        "pe_axis and slicing are deprecated and will be removed in the next release: "
        "eddymotion.load reads them from the sidecar; dataclasses.replace(dwi, acquisition=...) "
        "sets them",
        FutureWarning,
        stacklevel=4,
    )
    acquisition = replace(dwi.acquisition, slicing=slicing or dwi.acquisition.slicing)
    if pe_axis is not None:
        acquisition = acquisition.encoded(pe_axis, dwi.affine)
    return replace(dwi, acquisition=acquisition)


@dataclass(frozen=True, eq=False)
class _ReadVolumes:
    """All volumes at points that lie inside most of them.

    Parameters
    ----------
    points : (V, 3) array
        Of the reference, RAS+ mm.
    values : (V, N) float32 array
        NaN where a volume does not reach, or its slices left a gap.
    heights : (V, N) float32 array
        Where the points are along the slice axis of each volume, in slices.
    motion : Motion
    shape : (3,) tuple
        Of a volume.
    """

    points: np.ndarray
    values: np.ndarray
    heights: np.ndarray
    motion: Motion
    shape: tuple[int, ...]

    @classmethod
    def of(
        cls, dwi: DWI, motions: Sequence[Motion], seed: int, n_threads: int
    ) -> list[_ReadVolumes]:
        """Draw the points and read under each motion; each volume is prefiltered once for all."""
        random = np.random.default_rng(seed)
        points = _in_order(jittered_points(dwi.mask, dwi.affine, N_POINTS, random), dwi)
        values = np.empty((len(motions), len(dwi), len(points)), np.float32)
        heights = np.empty_like(values)
        margin = SPLINE_VOXELS * float(dwi.voxel_sizes.max())
        fields = [
            None if by is None else by.field.hertz_with_gradient(points)
            for by in (motion.off_resonance for motion in motions)
        ]

        def read(volume: int) -> None:
            image, axis = dwi.volume_with_missing(volume), dwi.acquisition.slicing.axis
            mappings = [motion.mapping(volume) for motion in motions]
            if all(mapping.slices is None for mapping in mappings):
                some = [mapping.recorded(points[::BOX_EVERY]) for mapping in mappings]
                image = crop(image, np.concatenate(some), margin)
            for k, (mapping, there) in enumerate(zip(mappings, fields, strict=True)):
                if mapping.is_rigid:
                    values[k, volume] = image.spline.sample(points, mapping.pose)
                    moved = np.linalg.inv(mapping.pose) @ dwi.affine
                    heights[k, volume] = slice_heights(points, moved, axis)
                    continue
                recorded, factor = mapping.displaced(points, there)
                if mapping.slices is None:
                    values[k, volume] = image.spline.sample(recorded) * factor
                else:
                    values[k, volume] = mapping.read(image, points, there, REBUILDING)
                heights[k, volume] = slice_heights(recorded, dwi.affine, axis)

        parallel_map(read, range(len(dwi)), n_threads=n_threads)
        covered = np.isfinite(values).mean(axis=1, dtype=np.float32) >= MIN_COVERED
        return [
            cls(points[inside], _chosen(shown, inside).T, _chosen(where, inside).T, motion,
                dwi.shape)
            for inside, shown, where, motion in zip(covered, values, heights, motions, strict=True)
        ]  # fmt: skip

    def mixture(self, volume: int) -> SliceWeights | None:
        """Weights of the slices at the points; None if the volume is read as one image."""
        slices = self.motion.mapping(volume).slices_at(self.points, self.shape)
        return None if slices is None else slices.weights


def _in_order(points: np.ndarray, dwi: DWI) -> np.ndarray:
    """Sort points (V, 3) by voxel as in a file, so that neighbours are read from close memory."""
    voxels = np.rint(transformed(np.linalg.inv(dwi.affine), points)).astype(int)
    return points[np.argsort(np.ravel_multi_index(voxels.T[::-1], dwi.shape[::-1], mode="clip"))]


def _chosen(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Choose columns (V,) bool of rows (N, V), without a copy if these are all."""
    return rows if columns.all() else rows.take(np.flatnonzero(columns), axis=1)


def _outlier_slices(
    dwi: DWI, reading: _ReadVolumes, predicted: np.ndarray, n_threads: int
) -> SliceOutliers:
    def judge(volume: int) -> SliceFit | None:
        if dwi.gradients.is_b0[volume]:
            return None
        columns = reading.values[:, volume], predicted[:, volume], reading.heights[:, volume]
        return fit_slices(*columns, dwi.n_slices, reading.mixture(volume))

    fits = parallel_map(judge, range(len(dwi)), n_threads=n_threads)
    return score_slices(fits, dwi.acquisition.slicing, comparable_groups(dwi.gradients))


def _lost(observed: np.ndarray, heights: np.ndarray, outliers: SliceOutliers) -> np.ndarray:
    """Find where each volume has lost its signal, or was not acquired, (V, N) bool."""
    lost = np.isnan(observed)
    for volume in range(lost.shape[1]):
        lost[:, volume] |= is_lost(outliers.flagged[volume], heights[:, volume])
        if outliers.unplaced is not None:
            lost[:, volume] |= outliers.unplaced[volume]
    return lost


def _with_predictions(
    observed: np.ndarray, predicted: np.ndarray, lost: np.ndarray, gradients: Gradients
) -> np.ndarray:
    """Put predictions in place of what is lost, (V, N)."""
    known = np.where(lost & np.isfinite(predicted), predicted, observed)
    return filled_with_means(known, gradients)


def _predict_without(
    signal: np.ndarray, lost: np.ndarray, gradients: Gradients, model: Model
) -> tuple[Model, np.ndarray]:
    """Fit the model and predict each volume from what the others have not lost.

    Where the model is linear, what is lost is put right in `signal`: predictions that were made
    while other volumes had lost the same slice are wrong.
    """
    with one_blas_thread():
        used = fitted(model, signal, gradients)
        if isinstance(used, LinearModel):
            fill_in(signal, lost & ~gradients.is_b0, used.precision(gradients))
        return used, predict(signal, gradients, used)


def agreement(observed: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Pearson correlation of two (V,) arrays, and the share of variance that is explained.

    NaN where less than half of the voxels have a prediction.
    """
    known = np.isfinite(predicted) & np.isfinite(observed)
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

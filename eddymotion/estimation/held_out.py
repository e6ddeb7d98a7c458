# SPDX-License-Identifier: Apache-2.0
"""Predicting held-out volumes from what the others have not lost.

Several volumes may have lost their signal at the same voxel. They are held out there together
(:func:`fill_in`): if each were predicted from the others as they are, the lost signal of one would
spoil the predictions of all.
"""

from __future__ import annotations

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.models import AverageModel, LinearModel, Model
from eddymotion.models.base import as_rows, scatter_of_bright

MAX_STEPS, TOLERANCE = 30, 1e-3
"""Conjugate gradients end after the first number of steps, or at this relative residual."""

VOXELS_AT_A_TIME = 2**14

REPEATS = 5
"""How often predictions are made where a model is not linear, since those of volumes that lost the
same voxel depend on one another."""


def predict(signal: np.ndarray, gradients: Gradients, model: Model) -> np.ndarray:
    """Predict each volume of an aligned signal (…, N) from the others; NaN where impossible.

    b=0 volumes are predicted by the mean of the other b=0 volumes, the others by `model`.
    """
    predicted = model.leave_one_out(signal, gradients)
    b0s = gradients.b0s
    if len(b0s):
        predicted[..., b0s] = AverageModel().leave_one_out(signal[..., b0s], gradients.select(b0s))
    return predicted


def fitted(model: Model, signal: np.ndarray, gradients: Gradients) -> Model:
    """Fit a model to an aligned signal (…, N), unless it is fitted or has no parameters."""
    if not isinstance(model, LinearModel) or model.fitted:
        return model
    return model.fit(scatter_of_bright(as_rows(signal)), gradients)


def filled_with_means(signal: np.ndarray, gradients: Gradients) -> np.ndarray:
    """Fill missing values (NaN) with the mean of the shell, or zero if none is known: (V, N)."""
    rows = np.flatnonzero(np.isnan(signal).any(axis=1))
    if not len(rows):
        return signal
    gone = np.isnan(signal[rows])
    some = np.where(gone, 0.0, signal[rows]).astype(signal.dtype)
    for group in (gradients.b0s, *gradients.shells):
        if len(group):
            n_known = np.maximum((~gone[:, group]).sum(axis=1, keepdims=True), 1)
            mean = some[:, group].sum(axis=1, keepdims=True) / n_known
            some[:, group] += gone[:, group] * mean
    filled = signal.copy(order="K")
    filled[rows] = some
    return filled


def predict_lost(
    signal: np.ndarray, lost: np.ndarray, gradients: Gradients, model: Model
) -> np.ndarray:
    """Predict each volume of an aligned signal (V, N) from what the others have not lost.

    Parameters
    ----------
    signal : (V, N) array
    lost : (V, N) bool array
        Not known; not changed.
    gradients : Gradients
    model : Model
        Fitted.

    Returns
    -------
    (V, N) float32 array
        NaN where the model predicts nothing: at a voxel that a whole shell has lost, say.
    """
    signal = filled_with_means(np.where(lost, np.nan, signal).astype(np.float32), gradients)
    with one_blas_thread():
        if isinstance(model, LinearModel):
            fill_in(signal, lost, model.precision(gradients))
        else:
            _fill_in_turns(signal, lost, gradients, model)
        predicted = predict(signal, gradients, model)
    for group in comparable_groups(gradients):
        all_lost = lost[:, group].all(axis=1)
        predicted[np.ix_(all_lost, group)] = np.nan
    return predicted


def fill_in(signal: np.ndarray, lost: np.ndarray, precision: np.ndarray) -> None:
    """Put the conditional mean given the rest in place of what is lost, in `signal`.

    Block elimination ``y_G ← y_G − P_GG⁻¹ (P y)_G`` (:mod:`eddymotion.models.base`) for the lost
    volumes ``G`` of each voxel, by conjugate gradients for many voxels at a time: as many steps as
    volumes are lost are exact, fewer are enough.

    Parameters
    ----------
    signal, lost : (V, N) array
    precision : (N, N) array
        Symmetric.
    """
    rows = np.flatnonzero(lost.any(axis=1))
    for start in range(0, len(rows), VOXELS_AT_A_TIME):
        part = rows[start : start + VOXELS_AT_A_TIME]
        gone, values = lost[part], signal[part].astype(float)
        residual = np.where(gone, -values @ precision, 0.0)
        direction, power = residual, (residual**2).sum(axis=1)
        enough = TOLERANCE**2 * power
        for _ in range(min(MAX_STEPS, int(gone.sum(axis=1).max()))):
            image = np.where(gone, direction @ precision, 0.0)
            curvature = (direction * image).sum(axis=1)
            step = _divided(power, curvature, where=(power > enough) & (curvature > 0))
            values += step * direction
            residual = residual - step * image
            previous, power = power, (residual**2).sum(axis=1)
            if (power <= enough).all():
                break
            direction = residual + _divided(power, previous, where=previous > 0) * direction
        signal[part] = values


def _divided(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Divide (V,) by (V,) as a column (V, 1), zero elsewhere."""
    return np.divide(above, below, out=np.zeros_like(above), where=where)[:, None]


def _fill_in_turns(
    signal: np.ndarray, lost: np.ndarray, gradients: Gradients, model: Model
) -> None:
    """Put predictions in place of what is lost, again and again, for a model of any kind."""
    for _ in range(REPEATS if lost.any() else 0):
        predicted = predict(signal, gradients, model)
        np.copyto(signal, predicted, where=lost & np.isfinite(predicted))

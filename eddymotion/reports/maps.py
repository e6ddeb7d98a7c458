# SPDX-License-Identifier: Apache-2.0
"""Maps on the three planes: colour FA, tSNR, CNR, held-out predictions, local correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.estimation.held_out import predict
from eddymotion.estimation.maps import MIN_VOLUMES, cnr, snr
from eddymotion.estimation.quality import Quality
from eddymotion.evaluation.series import nearest_neighbours, neighbour_correlations
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.models import LinearModel, Model, get_model
from eddymotion.models.tensor import fit_tensors
from eddymotion.reports.slices import Slices
from eddymotion.robust import over_known

LOCAL_MM = 4.0
"""Standard deviation of the Gaussian window of the local correlation."""

MIN_FOR_TENSOR = 6

COLOR_GAIN = 1.4


@dataclass(frozen=True, eq=False)
class JudgedSlices:
    """A series before or after its correction: its planes, and how well its volumes fit.

    Parameters
    ----------
    slices : Slices
    quality : Quality
        Of the volumes, compared with their predictions.
    """

    slices: Slices
    quality: Quality

    def predictor(self, model: Model, gradients: Gradients) -> Model:
        """Choose what predicts the planes: the model of the run, unless it refits each voxel.

        That would be too slow; a Gaussian process takes its place then.
        """
        used = self.quality.model or model
        return used if isinstance(used, LinearModel) else get_model("auto", gradients)


def predicted_planes(slices: Slices, model: Model) -> dict[str, np.ndarray]:
    """Predict the planes of each volume from the others; NaN where that is impossible.

    Returns
    -------
    dict
        As :attr:`~eddymotion.reports.slices.Slices.planes`.
    """
    shapes = {name: plane.shape for name, plane in slices.planes.items()}
    rows = np.concatenate([p.reshape(-1, p.shape[-1]) for p in slices.planes.values()])
    with one_blas_thread():
        found = predict(rows, slices.gradients, model)
    ends = np.cumsum([np.prod(shape[:2]) for shape in shapes.values()])[:-1]
    parts = np.split(found, ends.astype(int))
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def color_fa(slices: Slices, plane: str) -> np.ndarray:
    """Fit tensors in a plane (weighted least squares): FA-weighted colours (A, B, 3).

    Black where there are too few directions.
    """
    gradients, mask = slices.gradients, slices.mask(plane)
    picture = np.zeros((*mask.shape, 3))
    used = np.flatnonzero(~gradients.is_trace)
    directions = gradients.bvecs[used][~gradients.is_b0[used]]
    if len(directions) < MIN_FOR_TENSOR or not mask.any():
        return picture
    signal = slices.planes[plane][mask][:, used].astype(float)
    seen = (signal > 0).all(axis=1)  # zeros outside the field of view would look like fibres
    signal = np.maximum(signal, 1e-4 * signal.max() + 1e-9)
    try:
        tensors = fit_tensors(signal, gradients.select(used))
    except (EddymotionError, np.linalg.LinAlgError):  # too few directions that differ
        return picture
    along, fa = main_directions(tensors)
    picture[mask] = np.clip(COLOR_GAIN * np.abs(along) * (fa * seen)[:, None], 0, 1)
    return picture


def main_directions(tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return main directions (V, 3) and fractional anisotropies (V,) of tensors (V, 3, 3).

    Diffusivities below zero count as zero.
    """
    diffusivities, directions = np.linalg.eigh(np.nan_to_num(tensors))
    diffusivities = np.maximum(diffusivities, 0.0)
    spread = diffusivities - diffusivities.mean(axis=1, keepdims=True)
    power = np.maximum((diffusivities**2).sum(axis=1), np.finfo(float).tiny)
    fa = np.sqrt(1.5 * (spread**2).sum(axis=1) / power)
    return directions[:, :, -1], np.clip(fa, 0, 1)


def tsnr(signal: np.ndarray, gradients: Gradients) -> np.ndarray | None:
    """Mean over SD of the b=0 volumes (…); None with too few of them."""
    return snr(signal, gradients) if len(gradients.b0s) >= MIN_VOLUMES else None


def local_correlation(
    observed: np.ndarray, predicted: np.ndarray, sizes: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Correlation of two pictures in a Gaussian window, inside the mask; NaN outside.

    Parameters
    ----------
    observed, predicted : (A, B) array
    sizes : (2,) array
        Of the pixels, mm.
    mask : (A, B) bool array
    """
    from scipy.ndimage import gaussian_filter

    weight = mask & np.isfinite(predicted)
    y, p = (np.where(weight, values, 0.0).astype(float) for values in (observed, predicted))

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, LOCAL_MM / sizes)

    total = np.maximum(smooth(weight.astype(float)), 1e-6)
    mean_y, mean_p = smooth(y) / total, smooth(p) / total
    covariance = smooth(y * p) / total - mean_y * mean_p
    power = (smooth(y * y) / total - mean_y**2) * (smooth(p * p) / total - mean_p**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = covariance / np.sqrt(np.maximum(power, 0))
    return np.where(weight, np.clip(correlation, -1, 1), np.nan)


@dataclass(frozen=True)
class Measures:
    """Quality of a series before and after, over the brain; NaN where it has no meaning.

    Parameters
    ----------
    ndc : (2,) tuple
        Mean correlation of a diffusion-weighted volume with its neighbour in q-space.
    tsnr_b0 : (2,) tuple
        Median over the brain.
    cnr : dict
        b-value of a shell → median over the brain before and after.
    residual_percent : (2,) tuple
        Median over the diffusion-weighted volumes of the RMS difference from the prediction, in
        percent of the mean.
    """

    ndc: tuple[float, float]
    tsnr_b0: tuple[float, float]
    cnr: dict[str, tuple[float, float]]
    residual_percent: tuple[float, float]

    @classmethod
    def of(cls, before: Slices, after: Slices, models: Sequence[Model]) -> Measures:
        """Measure at points of the brain, with a model of each."""
        first, second = map(_measure, (before, after), models)
        return cls(
            (first["ndc"], second["ndc"]),
            (first["tsnr"], second["tsnr"]),
            {b: (first["cnr"][b], second["cnr"][b]) for b in first["cnr"]},
            (first["residual"], second["residual"]),
        )


def _measure(slices: Slices, model: Model) -> dict:
    signal, gradients = slices.points, slices.gradients
    seen = (signal > 0).all(axis=1)  # where the head left the image there is nothing to measure
    if not seen.all() and seen.mean() > 0.5:
        signal = signal.T.take(np.flatnonzero(seen), axis=1).T  # a volume stays in one piece
    try:
        with one_blas_thread():
            predicted = predict(signal, gradients, model)
    except (EddymotionError, np.linalg.LinAlgError):
        predicted = np.full_like(signal, np.nan)
    stable = tsnr(signal, gradients)
    # without shells, the spread over the few directions of a b-value means nothing
    shells = gradients.shells if gradients.is_shelled else []
    return {
        "ndc": mean_neighbour_correlation(signal, gradients),
        "tsnr": np.nan if stable is None else float(np.median(stable)),
        "cnr": {
            f"{bval:.0f}": float(np.median(cnr(predicted, signal - predicted, shell)))
            for bval, shell in zip(gradients.shell_bvals, shells, strict=False)
            if len(shell) >= MIN_VOLUMES
        },
        "residual": _residual_percent(signal, predicted, gradients.dwis),
    }


def mean_neighbour_correlation(signal: np.ndarray, gradients: Gradients) -> float:
    """Average the correlation of each diffusion-weighted volume with the one nearest in q-space.

    References
    ----------
    Yeh et al. (2019), NeuroImage 202:116131.
    """
    return over_known(np.mean, neighbour_correlations(signal, nearest_neighbours(gradients)))


def _residual_percent(signal: np.ndarray, predicted: np.ndarray, volumes: np.ndarray) -> float:
    y, p = signal[:, volumes], predicted[:, volumes]
    known = np.isfinite(p).all(axis=0)
    if not known.any():
        return float("nan")
    left = (y - p)[:, known]
    rms = np.sqrt(np.einsum("vn,vn->n", left, left, dtype=float) / len(left))
    return float(np.median(100 * rms / np.maximum(y[:, known].mean(axis=0), 1e-6)))

# SPDX-License-Identifier: Apache-2.0
"""Quality of a corrected series, from the series alone.

**Leave-one-out residual.** Each volume against its prediction from the others by a model: where
volumes lie on each other the prediction explains more of them.

**Neighbouring-DWI correlation** (NDC; Yeh et al. 2019): the correlation of each diffusion-weighted
volume with the one nearest to it in q-space, within the brain, and the mean of them.

**Smoothness.** Blurring raises correlations without aligning anything, so they are given with the
width (FWHM) of the Gaussian that would make white noise as smooth as the noise of the series. The
noise is what the model leaves, divided in each voxel by its standard deviation over the volumes;
it is looked at in the quieter half of the voxels, since at edges the model (or the alignment)
leaves structure. What is left of that still counts as smoothness: a badly aligned series looks
smoother than its noise, and widths below a voxel say no more than "little".

White noise under a Gaussian of standard deviation ``s`` has the autocorrelation
``ρ(d) = exp(−d² / 4s²)``; first differences at the voxel distance ``d`` have the variance
``2 (1 − ρ) σ²``, hence (Forman et al. 1995, as AFNI's 3dFWHMx)::

    ρ = 1 − var(differences) / (2 var(residuals)),    FWHM = s √(8 ln 2) = d √(−2 ln 2 / ln ρ)

Voxels that are zero in some volume (outside its field of view) are left out everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import SHELL_GAP, Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.held_out import predict
from eddymotion.estimation.quality import agreement
from eddymotion.images.grid import grid_distance
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.models import Model, get_model
from eddymotion.models.base import q_distances
from eddymotion.wording import short_repr

MAX_GRID_DISTANCE = 0.1
"""Voxels: two affines that put a corner of the grid closer than this are one grid."""

MIN_VOXELS = 50

QUIET = 0.5
"""Part of the voxels, those with the smallest residuals, in which the smoothness is measured."""

MIN_PAIRS = 30
"""Fewer pairs of neighbouring voxels along an axis do not determine smoothness."""


@dataclass(frozen=True, eq=False)
class SeriesQuality:
    """Quality of a series, volume by volume; NaN where it does not exist.

    Parameters
    ----------
    loo_correlation, loo_r2 : (N,) array
        Agreement with the leave-one-out prediction: Pearson, and explained part of the variance
        over the brain.
    loo_residual_percent : (N,) array
        RMS difference from the prediction, in percent of the volume's mean.
    neighbours : (N,) int array
        The volume nearest in q-space; −1 for b=0 and trace-weighted volumes.
    ndc : (N,) array
        Correlation with that volume.
    fwhm_mm : (N, 3) array
        Smoothness of the residual along the image axes.
    """

    loo_correlation: np.ndarray
    loo_r2: np.ndarray
    loo_residual_percent: np.ndarray
    neighbours: np.ndarray
    ndc: np.ndarray
    fwhm_mm: np.ndarray

    __repr__ = short_repr

    @property
    def fwhm_mean_mm(self) -> np.ndarray:
        """Geometric mean over the image axes, (N,)."""
        return np.cbrt(self.fwhm_mm.prod(axis=1))


def assess_series(
    dwi: DWI, mask: np.ndarray | None = None, model: Model | str = "auto"
) -> SeriesQuality:
    """Judge a series as it lies there: no volume is moved.

    Parameters
    ----------
    dwi : DWI
        A corrected series (or one to be compared with it).
    mask : (X, Y, Z) bool array, optional
        The brain; ``compared_mask(dwi)`` when not given.
    model : Model or str
        Predicts a volume from the others; a name of :func:`eddymotion.models.get_model`.

    Returns
    -------
    SeriesQuality

    References
    ----------
    Yeh et al. (2019), NeuroImage 202:116131. Forman et al. (1995), Magn Reson Med 33:636.
    """
    mask = compared_mask(dwi) if mask is None else mask
    if isinstance(model, str):
        model = get_model(model, dwi.gradients)
    observed = dwi.signal[mask]
    with one_blas_thread():
        predicted = predict(observed, dwi.gradients, model)
    pairs = list(zip(observed.T, predicted.T, strict=True))
    correlation, r2 = np.array([agreement(y, p) for y, p in pairs]).T
    nearest = nearest_neighbours(dwi.gradients)
    ndc = neighbour_correlations(observed, nearest)
    residuals = _standardised(observed - predicted, dwi.gradients.dwis)
    fwhm = np.array([smoothness(r, mask, dwi.voxel_sizes) for r in residuals.T])
    percent = np.array([_residual_percent(y, p) for y, p in pairs])
    return SeriesQuality(correlation, r2, percent, nearest, ndc, fwhm)


def nearest_neighbours(gradients: Gradients) -> np.ndarray:
    """Return the volume nearest to each diffusion-weighted one in q-space, (N,); else −1.

    Distances are between ``g √b``, a direction and its antipode being one.
    """
    apart = q_distances(gradients)
    return np.where(np.isfinite(apart).any(axis=1), apart.argmin(axis=1), -1)


def neighbour_correlations(signal: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Correlation of each volume of a signal (V, N) with its nearest, (N,); NaN without one."""
    return np.array([
        np.nan if other < 0 else pearson(signal[:, volume], signal[:, other])
        for volume, other in enumerate(nearest)
    ])  # fmt: skip


def correlation_between(a: DWI, b: DWI, mask: np.ndarray) -> np.ndarray:
    """Pearson correlation of each volume of one series with that of another, (N,)."""
    return np.array([pearson(a.signal[mask, i], b.signal[mask, i]) for i in range(len(a))])


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two (V,) arrays; NaN if one is constant."""
    a, b = a - a.mean(dtype=float), b - b.mean(dtype=float)
    spread = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / spread, -1, 1)) if spread > 0 else np.nan


def smoothness(residual: np.ndarray, mask: np.ndarray, voxel_sizes: np.ndarray) -> np.ndarray:
    """Return the FWHM (mm) of noise along the three image axes; see the module's text.

    Parameters
    ----------
    residual : (V,) array
        Noise in the voxels of `mask`; NaN where unknown.
    mask : (X, Y, Z) bool array
    voxel_sizes : (3,) array
        mm.

    Returns
    -------
    (3,) array
        0 where neighbours are not correlated, NaN along an axis without enough neighbours.
    """
    volume = np.full(mask.shape, np.nan)
    volume[mask] = residual
    known = residual[np.isfinite(residual)]
    fwhm = np.full(3, np.nan)
    if len(known) < MIN_PAIRS or not known.std() > 0:
        return fwhm
    for axis, size in enumerate(voxel_sizes):
        steps = np.diff(volume, axis=axis)
        steps = steps[np.isfinite(steps)]
        if len(steps) < MIN_PAIRS:
            continue
        rho = 1 - steps.var() / (2 * known.var())
        inside = 0 < rho < 1
        fwhm[axis] = size * np.sqrt(-2 * np.log(2) / np.log(rho)) if inside else 0.0
    return fwhm


def _standardised(residuals: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Divide residuals (V, N) by their standard deviation over `volumes`.

    NaN in the other volumes and in the louder half of the voxels.
    """
    standard = np.full_like(residuals, np.nan)
    volumes = volumes[np.isfinite(residuals[:, volumes]).all(axis=0)]
    if not len(volumes):
        return standard
    spread = residuals[:, volumes].std(axis=1, keepdims=True)
    quiet = ((spread > 0) & (spread <= np.quantile(spread, QUIET))).ravel()
    standard[np.ix_(quiet, volumes)] = residuals[np.ix_(quiet, volumes)] / spread[quiet]
    return standard


def _residual_percent(observed: np.ndarray, predicted: np.ndarray) -> float:
    level = observed.mean(dtype=float)
    known = np.isfinite(predicted)
    if not known.any() or not level > 0:
        return np.nan
    residual = (observed - predicted)[known].astype(float)
    return float(100 * np.sqrt((residual**2).mean()) / level)


def compared_mask(*series: DWI, mask: np.ndarray | None = None) -> np.ndarray:
    """Return the voxels on which series are judged.

    Parameters
    ----------
    *series : DWI
        On one grid.
    mask : (X, Y, Z) bool array, optional
        The brain; where the masks of all series agree when not given.

    Returns
    -------
    (X, Y, Z) bool array
        Without voxels that are zero in some volume, unless that is more than half of them.

    Raises
    ------
    EddymotionError
        If hardly anything is left.
    """
    if mask is None:
        mask = np.logical_and.reduce([dwi.mask for dwi in series])
    covered = mask.copy()
    for dwi in series:
        for volume in np.moveaxis(dwi.signal, 3, 0):  # one at a time: memory
            covered &= volume != 0
    chosen = covered if covered.sum() >= mask.sum() / 2 else mask
    if chosen.sum() < MIN_VOXELS:
        raise EddymotionError(
            f"the brain mask has {chosen.sum()} voxels, expected at least {MIN_VOXELS}; "
            "give one with --mask"
        )
    return chosen


def refuse_different(a: DWI, b: DWI) -> None:
    """Raise unless two series have the same voxels and the same b-values.

    Raises
    ------
    EddymotionError
        Saying what differs.
    """
    names = [str(dwi.source or name) for dwi, name in ((a, "first"), (b, "second"))]
    if a.shape != b.shape:
        raise EddymotionError(
            f"{names[0]} has {_times(a.shape)} voxels, {names[1]} has {_times(b.shape)}; series "
            "are compared on a common grid: resample one to the grid of the other"
        )
    apart = grid_distance(a.affine, b.affine, a.shape)
    if apart > MAX_GRID_DISTANCE * a.voxel_sizes.min():
        raise EddymotionError(
            f"{names[0]} and {names[1]}: the grids lie up to {apart:.3g} mm apart; series are "
            "compared on a common grid: resample one to the grid of the other"
        )
    if len(a) != len(b):
        raise EddymotionError(
            f"{names[0]} has {len(a)} volumes, {names[1]} has {len(b)}; give series of the same "
            "volumes in the same order"
        )
    steps = np.abs(a.gradients.bvals - b.gradients.bvals)
    if steps.max() > SHELL_GAP:
        volume = int(steps.argmax())
        raise EddymotionError(
            f"volume {volume} (counted from 0) has b={a.gradients.bvals[volume]:g} in {names[0]} "
            f"and b={b.gradients.bvals[volume]:g} in {names[1]}; give series of the same volumes "
            "in the same order"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))

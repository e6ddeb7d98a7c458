# SPDX-License-Identifier: Apache-2.0
"""Denoising and removal of Gibbs ringing, applied to the series that is resampled.

Denoising needs the data as they were acquired, since interpolation correlates the noise of
neighbouring voxels; so does the removal of ringing, which depends on where edges lie between
voxels. Motion, too, is found in the series as acquired, since denoising removes a part of it. So
the order is ::

    acquired ─┬─────────────────────────────▶ motion ─┐
              └─ denoised ─▶ without ringing ─────────┴▶ resampled once

MP-PCA and the removal of ringing are DIPY's. Patch2Self predicts each volume by linear regression
from the others of its kind: with ``P`` the inverse of their covariance over the voxels, what the
regression leaves of volume ``i`` is ``(P y)ᵢ / Pᵢᵢ``, without a fit for each of them
(:mod:`eddymotion.models.base` has the proof). Nothing here corrects the bias of magnitudes at low
signal, nor that of the coils.

References
----------
Veraart et al. (2016), NeuroImage 142:394 (MP-PCA). Fadnavis, Batson & Garyfallidis (2020), NeurIPS
33:16293 (Patch2Self). Kellner et al. (2016), Magn Reson Med 76:1574 (Gibbs ringing).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import scipy

from eddymotion.data.series import DWI
from eddymotion.derivatives.names import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.io.images import write_image
from eddymotion.io.sidecars import SeriesFiles, metadata_of
from eddymotion.io.writing import write_json
from eddymotion.machine.parallel import Progress, one_blas_thread, parallel_map
from eddymotion.pipeline.settings import Settings

log = logging.getLogger(__name__)

NAMES = {"mppca": "MP-PCA", "patch2self": "Patch2Self"}

AROUND_BRAIN_MM = 12.0
"""Distance from the brain up to which MP-PCA is done: a head moves within it; beyond is air."""

SLAB = 12
"""Slices that are denoised at a time. Those beside them are read again for the next ones."""

RIDGE = 1e-10
"""Added to the variance of each volume, relative to their mean: the volumes may be equal."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A series that is ready to be resampled.

    Parameters
    ----------
    dwi : DWI
        In the same places as the original one.
    noise : (X, Y, Z) array, optional
        Standard deviation of the noise that was taken off, in units of the signal; NaN where none
        was.
    """

    dwi: DWI
    noise: np.ndarray | None = None


def prepare(dwi: DWI, settings: Settings, progress: Progress) -> Prepared:
    """Take noise and then ringing off a series, as the settings say.

    Raises
    ------
    EddymotionError
        If there are too few volumes or voxels for it, or a library is missing.
    """
    signal, noise = dwi.signal, None
    if settings.denoise == "mppca":
        signal, noise = without_noise_mppca(dwi, settings.nprocs, progress)
    elif settings.denoise == "patch2self":
        signal, noise = without_noise_patch2self(dwi)
    if settings.degibbs:
        axis, n_threads = dwi.acquisition.slicing.axis, settings.nprocs
        signal = without_ringing(signal, axis, n_threads, progress)
    if signal is dwi.signal:
        return Prepared(dwi)
    for clean, acquired in zip(np.moveaxis(signal, 3, 0), dwi.volumes(), strict=True):
        if acquired.min() >= 0:
            np.maximum(clean, 0, out=clean)
        clean[acquired == 0] = 0  # what the scanner, or a mask, left out
    return Prepared(replace(dwi, signal=signal), noise)


def without_noise_mppca(
    dwi: DWI, n_threads: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Denoise by principal components of the Marchenko–Pastur distribution.

    Returns
    -------
    signal : (X, Y, Z, N) float32 array
        As acquired far from the brain.
    sigma : (X, Y, Z) float32 array
        Standard deviation of the noise, NaN far from the brain.
    """
    from dipy.denoise.localpca import mppca

    radius = patch_radius(len(dwi))
    if min(dwi.shape) <= 2 * radius:
        raise EddymotionError(
            f"{dwi.source or dwi}: MP-PCA needs at least {2 * radius + 1} voxels along each "
            "axis; leave --denoise out"
        )
    near = (
        scipy.ndimage.distance_transform_edt(~dwi.mask, sampling=dwi.voxel_sizes)
        <= AROUND_BRAIN_MM
    )
    signal = np.array(dwi.signal, np.float32)
    sigma = np.full(dwi.shape, np.nan, np.float32)
    x, y = (_around(near.any(axis=axes), 2 * radius) for axes in ((1, 2), (0, 2)))

    def denoise(start: int) -> None:
        inner = slice(start, min(start + SLAB, dwi.shape[2]))
        outer = slice(max(start - 2 * radius, 0), inner.stop + 2 * radius)
        here = slice(inner.start - outer.start, inner.stop - outer.start)
        if not near[:, :, outer].any():
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            clean, deviation = mppca(
                np.asarray(dwi.signal[x, y, outer], np.float32), mask=near[x, y, outer],
                patch_radius=radius, return_sigma=True, suppress_warning=True,
            )  # fmt: skip
        done = near[x, y, inner] & np.isfinite(clean[:, :, here]).all(axis=3)
        signal[x, y, inner][done] = clean[:, :, here][done]
        sigma[x, y, inner][done] = deviation[:, :, here][done]

    starts = range(0, dwi.shape[2], SLAB)
    with one_blas_thread():
        parallel_map(
            denoise, starts, n_threads=n_threads, progress=progress, description="denoising"
        )
    return signal, sigma


def _around(used: np.ndarray, margin: int) -> slice:
    """Return the part of an axis that is used, and a margin."""
    first, last = np.flatnonzero(used)[[0, -1]]
    return slice(max(int(first) - margin, 0), int(last) + margin + 1)


def patch_radius(n_volumes: int) -> int:
    """Return the radius of the smallest cube, at least 5 voxels wide, that serves the volumes."""
    radius = 2
    while (2 * radius + 1) ** 3 - 1 < n_volumes:
        radius += 1
    return radius


def without_noise_patch2self(dwi: DWI) -> tuple[np.ndarray, np.ndarray]:
    """Denoise by predicting each volume linearly from the others: Patch2Self, of single voxels.

    Returns
    -------
    signal : (X, Y, Z, N) float32 array
        A lone b=0 volume is as acquired.
    removed : (X, Y, Z) float32 array
        Root mean square over the volumes of what was taken off.
    """
    signal = np.array(dwi.signal, np.float32)
    for group in (dwi.gradients.b0s, dwi.gradients.dwis):
        if len(group) < 2:
            continue
        mean, scatter = _moments(dwi, group)
        scatter += RIDGE * np.trace(scatter) / len(group) * np.eye(len(group))
        with one_blas_thread():
            precision = np.linalg.inv(scatter)
            residual = precision / np.diag(precision)
            for index in range(dwi.shape[2]):
                acquired = dwi.signal[:, :, index, group].astype(float)
                signal[:, :, index, group] = acquired - (acquired - mean) @ residual
    squares = np.zeros(dwi.shape, np.float32)
    for volume, clean in zip(dwi.volumes(), np.moveaxis(signal, 3, 0), strict=True):
        squares += (volume - clean) ** 2
    return signal, np.sqrt(squares / len(dwi))


def _moments(dwi: DWI, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (K,) and scatter (K, K) of some volumes over all voxels, a slice at a time."""
    planes = range(dwi.shape[2])
    of_planes = [dwi.signal[:, :, k, group].mean(axis=(0, 1), dtype=float) for k in planes]
    mean = np.mean(of_planes, axis=0)
    scatter = np.zeros((len(group), len(group)))
    with one_blas_thread():
        for k in planes:
            away = dwi.signal[:, :, k, group].reshape(-1, len(group)) - mean
            scatter += away.T @ away
    return mean, scatter


def without_ringing(
    signal: np.ndarray, slice_axis: int, n_threads: int, progress: Progress
) -> np.ndarray:
    """Take the ringing off within each slice, by shifts below a voxel: (X, Y, Z, N) float32."""
    from dipy.denoise.gibbs import gibbs_removal

    clean = np.array(signal, np.float32)

    def remove(volume: int) -> None:
        clean[..., volume] = gibbs_removal(
            np.array(clean[..., volume]), slice_axis=slice_axis, inplace=False
        )

    volumes = range(clean.shape[3])
    parallel_map(
        remove, volumes, n_threads=n_threads, progress=progress, description="Gibbs ringing"
    )
    return clean


def describe(prepared: Prepared, settings: Settings) -> str:
    """Say what was taken off."""
    parts = []
    if prepared.noise is not None:
        level = np.median(prepared.noise[prepared.dwi.mask & np.isfinite(prepared.noise)])
        parts.append(f"{NAMES[settings.denoise]}, noise {level:.3g} (median in the brain)")
    if settings.degibbs:
        parts.append("Gibbs ringing")
    return " and ".join(parts) + "; motion was found in the series as acquired"


def write_noise(prepared: Prepared, settings: Settings, outputs: Outputs) -> None:
    """Write the map of the noise, or remove that of an earlier run."""
    if prepared.noise is None:
        outputs["noise"].unlink(missing_ok=True)
        outputs["noise_sidecar"].unlink(missing_ok=True)
        return
    write_image(outputs["noise"], np.nan_to_num(prepared.noise), prepared.dwi.affine)
    meaning = {
        "mppca": "Standard deviation of the noise by MP-PCA (Veraart et al. 2016)",
        "patch2self": "Root mean square over the volumes of what Patch2Self took off (Fadnavis et "
        "al. 2020)",
    }[settings.denoise]
    write_json(outputs["noise_sidecar"], {
        "Description": f"{meaning}, in units of the signal, on the grid of the original series "
                       "and in the frame of the scanner; zero where nothing was taken off",
        "Units": "arbitrary",
    })  # fmt: skip


def warn_of_partial_fourier(series: SeriesFiles, settings: Settings) -> None:
    """Warn where ringing cannot be taken off in full."""
    part = metadata_of(series).get("PartialFourier")
    if settings.degibbs and isinstance(part, int | float) and 0 < part < 1:
        log.warning(
            "%s: the sidecar says PartialFourier %g; --degibbs assumes full k-space and removes "
            "less of the ringing along the phase-encoding axis", series.dwi.name, part
        )  # fmt: skip

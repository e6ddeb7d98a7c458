# SPDX-License-Identifier: Apache-2.0
"""A head fitted to a real series by spherical harmonics: no model of tissue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid
from eddymotion.io.series import mean_b0
from eddymotion.mapping.motion import Motion
from eddymotion.resampling import resample
from eddymotion.simulation.crude import align_crudely
from eddymotion.simulation.fitted import SeriesHead, common_field_of_view, head_region, with_margin
from eddymotion.simulation.phantom import S0

log = logging.getLogger(__name__)

ORDERS = {18: 4, 6: 2}
"""Order of the harmonics for this number of directions in a shell, or more."""

SMOOTHNESS = 0.006
"""Weight of the Laplace-Beltrami penalty (Descoteaux et al. 2007)."""

KAPPA = 2.5
"""Between b-values and beyond them, a signal falls as ``(1 + b d / κ)^-κ``."""

LEAST_SHARE, LARGEST_SHARE = 0.02, 0.98
"""Bounds of a diffusion-weighted signal, relative to b=0."""

NEIGHBOURHOOD = 3
"""Voxels along each axis over which maps are compared with their noise."""

WHITE_PERCENTILE = 70
"""White matter is where anisotropy is above this percentile of the brain."""


@dataclass(frozen=True, eq=False)
class HarmonicHead(SeriesHead):
    """Spherical harmonics of the signal of each shell, in each voxel.

    Why this model: it shares nothing with the models that the package estimates motion with, and
    takes the contrast between b=0 and diffusion-weighted volumes as it is in a real brain. For
    b-values without a shell the decay of each direction is that of gamma-distributed
    diffusivities, whose mean is taken from the shells around.

    Noise of the series would be a pattern that moves with the head and makes its motion too easy
    to see. So every map is shrunk towards its local mean where its variance is no larger than
    that of noise (an adaptive Wiener filter, Lee 1980).

    Parameters
    ----------
    s0 : (X, Y, Z) array
        White matter about that of :data:`~eddymotion.simulation.phantom.S0`.
    bvals : (S,) array
        Of the shells, s/mm², rising.
    coefficients : (S, X, Y, Z, C) array
        Of real harmonics (Descoteaux et al. 2007), RAS+.
    brain : (X, Y, Z) bool array
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    field_of_view : Grid
        The grid of the series; the maps reach beyond it.
    """

    s0: np.ndarray
    bvals: np.ndarray
    coefficients: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    field_of_view: Grid

    @classmethod
    def from_series(
        cls, dwi: DWI, motion: Motion | None = None, *, n_threads: int = 1
    ) -> HarmonicHead:
        """Fit a series.

        Parameters
        ----------
        dwi : DWI
            Trace-weighted volumes take no part.
        motion : Motion, optional
            Of the series; default: that of :func:`~eddymotion.simulation.crude.align_crudely`.
        n_threads : int
            The result does not depend on it.

        Raises
        ------
        EddymotionError
            If the series has no shells of six directions or more, or no b=0.
        """
        dwi = dwi.select(np.flatnonzero(~dwi.gradients.is_trace))
        shells = _shells_to_fit(dwi.gradients)
        motion = motion or align_crudely(dwi)
        aligned = resample(dwi, motion, engine="fast", n_threads=n_threads)
        signal, gradients = np.maximum(aligned.signal, 0), aligned.gradients
        b0 = mean_b0(signal, gradients)
        region = head_region(b0, aligned.mask)
        fits = [_fit_shell(signal[..., s][region], gradients.bvecs[s]) for s in shells]
        variance = float(np.mean([noise for _, _, noise in fits]))
        log.info("fit: harmonics in %d voxels of %d shells", region.sum(), len(shells))
        maps = _shrunk_maps(b0, variance / len(gradients.b0s), fits, region)
        seen = common_field_of_view(dwi, motion)
        wider, affine, around = with_margin(maps, dwi, seen)
        head = cls(
            wider[..., 0],
            np.array([gradients.bvals[s].mean() for s in shells]),
            _equal_orders(wider[..., 1:], [len(c) for c, _, _ in fits]),
            np.pad(dwi.mask, around),
            affine,
            Grid(dwi.shape, dwi.affine),
        )
        gain = np.float32(S0[0] / head.white_signal)
        return replace(head, s0=head.s0 * gain, coefficients=head.coefficients * gain)

    @cached_property
    def white_signal(self) -> float:
        """Median b=0 signal of the most anisotropic part of the brain."""
        mean, *others = np.moveaxis(self.coefficients[-1][self.brain], -1, 0)
        anisotropy = np.sum(np.square(others), axis=0) / np.maximum(mean, 1e-6) ** 2
        white = anisotropy > np.percentile(anisotropy, WHITE_PERCENTILE)
        return float(np.median(self.s0[self.brain][white]))

    def signal(self, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal; see :class:`eddymotion.simulation.Head`."""
        if bval == 0:
            return self.s0.astype(np.float32)
        basis = harmonics(np.asarray(bvec, float)[None], self.coefficients.shape[-1])[0]
        s0 = np.maximum(self.s0, 1e-6)
        diffusivities = [
            KAPPA / shell * (np.clip((c @ basis.astype(np.float32)) / s0, LEAST_SHARE,
                                     LARGEST_SHARE) ** (-1 / KAPPA) - 1)
            for shell, c in zip(self.bvals, self.coefficients, strict=True)
        ]  # fmt: skip
        k = np.clip(np.searchsorted(self.bvals, bval) - 1, 0, max(len(self.bvals) - 2, 0))
        d = diffusivities[k]
        if len(self.bvals) > 1:
            low, high = self.bvals[k : k + 2]
            part = np.float32(np.clip((bval - low) / (high - low), 0, 1))
            d = (1 - part) * d + part * diffusivities[k + 1]
        return (self.s0 * (1 + bval * d / KAPPA) ** -KAPPA).astype(np.float32)


def harmonics(bvecs: np.ndarray, n: int) -> np.ndarray:
    """Values (G, C) of the first `n` real symmetric harmonics along unit vectors (G, 3)."""
    from dipy.core.geometry import cart2sphere
    from dipy.reconst.shm import real_sh_descoteaux

    _, theta, phi = cart2sphere(*bvecs.T)
    order = next(order for order in (0, 2, 4) if (order + 1) * (order + 2) // 2 >= n)
    return real_sh_descoteaux(order, theta, phi, legacy=False)[0][:, :n]


def _shells_to_fit(gradients: Gradients) -> list[np.ndarray]:
    """Return the shells with enough directions; a series without any, or b=0, is an error."""
    shells = [shell for shell in gradients.shells if len(shell) >= min(ORDERS)]
    if not (gradients.is_shelled and shells and len(gradients.b0s)):
        raise EddymotionError(
            f"fit: found {len(gradients.b0s)} b=0 volumes and shells of "
            f"{', '.join(str(len(shell)) for shell in gradients.shells) or 'no'} directions; give "
            "a series with a b=0 and six directions or more at one b-value"
        )
    return shells


def _shrunk_maps(
    b0: np.ndarray,
    b0_variance: float,
    fits: Sequence[tuple[np.ndarray, np.ndarray, float]],
    region: np.ndarray,
) -> np.ndarray:
    """Return b=0 and the coefficients of all shells as maps (X, Y, Z, 1 + C) with less noise.

    Parameters
    ----------
    b0 : (X, Y, Z) array
    b0_variance : float
        Of its noise.
    fits : sequence
        What :func:`_fit_shell` returns of each shell.
    region : (X, Y, Z) bool array
        Voxels that were fitted.
    """
    maps = [np.where(region, shrunk(b0, b0_variance), 0)]
    for coefficients, gains, noise in fits:
        for values, gain in zip(coefficients, gains, strict=True):
            volume = np.zeros(region.shape, np.float32)
            volume[region] = values
            maps.append(np.where(region, shrunk(volume, gain * noise), 0))
    return np.stack(maps, axis=-1)


def _fit_shell(voxels: np.ndarray, bvecs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit harmonics with a penalty.

    Parameters
    ----------
    voxels : (V, G) array
    bvecs : (G, 3) array

    Returns
    -------
    coefficients : (C, V) array
    gains : (C,) array
        Variance of each coefficient for noise of variance one.
    variance : float
        Of the noise.
    """
    order = next(order for least, order in ORDERS.items() if len(bvecs) >= least)
    degrees = np.repeat(np.arange(0, order + 1, 2), 2 * np.arange(0, order + 1, 2) + 1)
    basis = harmonics(bvecs, len(degrees))
    penalty = SMOOTHNESS * np.diag((degrees * (degrees + 1.0)) ** 2)
    solve = np.linalg.solve(basis.T @ basis + penalty, basis.T)
    coefficients = solve @ voxels.T
    residuals = voxels.T - basis @ coefficients
    freedom = len(bvecs) - np.trace(basis @ solve)
    variance = np.median((residuals**2).sum(axis=0)) / max(freedom, 1.0)
    return coefficients.astype(np.float32), (solve**2).sum(axis=1), float(variance)


def shrunk(volume: np.ndarray, variance: float) -> np.ndarray:
    """Shrink a map towards its local mean, by the share of noise in its local variance.

    Parameters
    ----------
    volume : (X, Y, Z) array
    variance : float
        Of the noise of a voxel.
    """
    mean = ndimage.uniform_filter(volume, NEIGHBOURHOOD)
    spread = np.maximum(ndimage.uniform_filter(volume**2, NEIGHBOURHOOD) - mean**2, 1e-12)
    return mean + np.maximum(1 - variance / spread, 0) * (volume - mean)


def _equal_orders(maps: np.ndarray, counts: list[int]) -> np.ndarray:
    """Stack the maps of the shells, (S, X, Y, Z, C): harmonics that one lacks are zero there."""
    stacked = np.zeros((len(counts), *maps.shape[:3], max(counts)), np.float32)
    starts = np.cumsum([0, *counts[:-1]])
    for shell, start, count in zip(stacked, starts, counts, strict=True):
        shell[..., :count] = maps[..., start : start + count]
    return stacked

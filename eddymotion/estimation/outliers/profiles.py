# SPDX-License-Identifier: Apache-2.0
"""The share expected of a slice that lost nothing, from the other slices of its volume.

A structure that the model cannot predict, such as a bundle along just this direction, darkens or
brightens all slices that it passes through: the points of a slice are wrong together, and so are
neighbouring slices. Such a volume differs from its prediction by a profile that is smooth along
the slice axis. A head that moves, however, takes signal from the slices excited at that moment,
and leaves those beside them intact. A slice is therefore compared with the share expected from
the other slices of its volume.

Let ``x_k`` be how far the share of slice ``k`` is from the usual one, in units of the scatter
there. As a Gaussian process along the axis, of the covariance::

    K_jk = (1 − ν) (1 + a) exp(−a) + ν δ_jk,    a = √3 |j − k| / ℓ,

of the precision ``P = K⁻¹``, slice ``k`` is expected at ``x_k − (P x)_k / P_kk`` by the others
(:mod:`eddymotion.models.base`). One that is not known is given the variance :data:`UNKNOWN` on top
and is no evidence; the same formula then holds for all. Length ``ℓ`` and share ``ν`` are those of
:data:`PROFILES` that predict the slices of the series best.

- *Scatter*. What is left is measured in units of its robust scatter over the volumes and the
  slices near by, and over the slices of the volume, where that is larger: a volume that its model
  predicts badly is rough along the axis as well.
- *Flood*. All that are low at first are taken for lost, and are no evidence. Of each volume the
  slice beside a known one that is explained best is then known as well, until none is explained.
  A smooth profile is explained from its ends inwards, slices that are lost side by side are not.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
import scipy

from eddymotion.machine.parallel import one_blas_thread
from eddymotion.robust import MAD_TO_SIGMA, known_medians, robust_deviation

Z_THRESHOLD = -3.5
RATIO_THRESHOLD = 0.9
"""A slice is an outlier below both: far from what is usual for it, and at least 10 % of its
signal gone."""

MIN_SPREAD = 0.01
"""Shares are not known better than this, however little they scatter."""

SPREAD_SLICES = 2
"""Slices to each side that are used for the scatter of a slice."""

VOLUMES_FOR_OWN_SPREAD = 30
"""From this number of volumes on, the scatter of a slice alone is known. The slice in which the
brain ends shows another part of it at each pose, and scatters more than those beside it."""

PROFILES = ((0.0, 1.0), *((length, noise) for length in (1.0, 2.0, 3.5)
                          for noise in (0.02, 0.1, 0.3)))  # fmt: skip
"""Correlation length in slices, and share of the variance that is each slice's own."""

SMOOTHEST = (3.5, 0.02)
"""The profile of a volume that differs from the others in what its model cannot predict."""

SLICES_OF_BUNDLE = 4
"""A volume has it if this many more slices are explained."""

VOLUMES_TO_CHOOSE = 30
"""The profile is chosen by at most this many volumes."""

CLEARLY_BETTER = 0.97
"""A profile is preferred to a simpler one if it leaves less than this part."""

UNKNOWN = 1e6
"""Variance of a slice that is no evidence."""

SLICES_FOR_SCATTER = 5
"""From this number of slices on, the scatter of a volume is known."""

LEAST_EXPECTED = 0.1
"""A share is not expected below this."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """Slices against what is expected of them, (N, Z) each; NaN where not judged.

    Parameters
    ----------
    z : array
    ratio : array
        Share of the signal that was expected.
    spread : array
        Standard deviation of the share in a slice that lost nothing.
    """

    z: np.ndarray
    ratio: np.ndarray
    spread: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """True for outliers, (N, Z)."""
        return is_low(self.z, self.ratio)


def is_low(z: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Whether slices are below both thresholds."""
    with np.errstate(invalid="ignore"):
        return (z < Z_THRESHOLD) & (ratio < RATIO_THRESHOLD)


@dataclass(frozen=True, eq=False)
class Profiles:
    """How far shares of slices are from the usual ones, along the slice axis of each volume.

    Parameters
    ----------
    away : (N, Z) array
        In units of `spread`; NaN where not judged.
    ratio, spread : (N, Z) array
        The share, and its scatter over the volumes.
    kernel : (Z, Z) array
        Correlation of the slices of a volume.
    """

    away: np.ndarray
    ratio: np.ndarray
    spread: np.ndarray
    kernel: np.ndarray

    @classmethod
    def of(cls, off: np.ndarray, error: np.ndarray, ratio: np.ndarray) -> Profiles:
        """Standardise differences (N, Z) from the usual share; learn how they hang together."""
        away, spread = standardised(off, error)
        return cls(away, ratio, spread, chosen_kernel(away, ~is_low(away, ratio)))

    def judge(self) -> Judgement:
        """Judge each slice by those of its volume that lost nothing.

        A volume of which a smooth profile explains several slices more than the usual one has it.
        """
        smooth = slice_correlation(len(self.kernel), *SMOOTHEST)
        usual, other = self._flooded(), replace(self, kernel=smooth)._flooded()
        fewer = usual.low.sum(axis=1) - other.low.sum(axis=1)
        better = (fewer >= SLICES_OF_BUNDLE)[:, None]
        columns = zip(astuple(usual), astuple(other), strict=True)
        return Judgement(*(np.where(better, second, first) for first, second in columns))

    def _flooded(self) -> Judgement:
        """Let slices that are explained be evidence, from those that are whole inwards."""
        judged = np.isfinite(self.away)
        known = judged & ~is_low(self.away, self.ratio)
        while (low := known & self.against(known).low).any():
            known &= ~low
        while True:
            judgement = self.against(known)
            explained = judged & ~known & ~judgement.low & beside(known)
            if not explained.any():
                return judgement
            best = np.where(explained, judgement.z, -np.inf).argmax(axis=1)
            volumes = np.flatnonzero(explained.any(axis=1))
            known[volumes, best[volumes]] = True

    def against(self, known: np.ndarray) -> Judgement:
        """Compare all slices with what those that are `known` (N, Z) let expect of them."""
        expected, deviation = expected_from(self.away, known, self.kernel)
        left = self.away - expected
        size = np.where(known, np.abs(left) / deviation, np.nan)
        scatter = np.nan_to_num(scatter_of_slices(size), nan=1.0)
        deviation = deviation * scatter * scatter_of_volumes(size / scatter)[:, None]
        deviation = np.maximum(deviation, MIN_SPREAD / self.spread)
        share = np.maximum(1 + expected * self.spread, LEAST_EXPECTED)
        return Judgement(left / deviation, self.ratio / share, deviation * self.spread)


def expected_from(
    away: np.ndarray, known: np.ndarray, kernel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Expect each slice from those of its volume that are known, but for itself.

    Parameters
    ----------
    away : (N, Z) array
    known : (N, Z) bool array
    kernel : (Z, Z) array

    Returns
    -------
    expected, deviation : (N, Z) array
        And the standard deviation of what is left.
    """
    values = np.where(known, away, 0.0)
    expected, deviation = np.empty_like(values), np.empty_like(values)
    patterns, of_volumes = np.unique(known, axis=0, return_inverse=True)
    with one_blas_thread():
        for number, pattern in enumerate(patterns):  # few: most volumes lack the same slices
            rows = of_volumes == number
            extra = np.where(pattern, 0.0, UNKNOWN)
            precision = np.linalg.inv(kernel + np.diag(extra))
            diagonal = np.diag(precision)
            expected[rows] = values[rows] - values[rows] @ precision / diagonal
            deviation[rows] = np.sqrt(1 / diagonal - extra)
    return expected, deviation


def chosen_kernel(away: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Return the correlation (Z, Z) by which slices that are fine predict each other best."""
    known, best = fine & np.isfinite(away), np.inf
    some = np.unique(np.linspace(0, len(away) - 1, VOLUMES_TO_CHOOSE).round().astype(int))
    away, known = away[some], known[some]
    chosen = np.eye(away.shape[1])
    for profile in PROFILES if known.any() else ():
        kernel = slice_correlation(away.shape[1], *profile)
        expected, _ = expected_from(away, known, kernel)
        left = robust_deviation((away - expected)[known])
        if left < CLEARLY_BETTER * best:
            chosen, best = kernel, left
    return chosen


def slice_correlation(n_slices: int, length: float, noise: float) -> np.ndarray:
    """Correlation of slices (Z, Z): Matérn's of order 3/2, and what is each slice's own."""
    if not length:
        return np.eye(n_slices)
    apart = np.sqrt(3) / length * scipy.linalg.toeplitz(np.arange(n_slices))
    return (1 - noise) * (1 + apart) * np.exp(-apart) + noise * np.eye(n_slices)


def beside(known: np.ndarray) -> np.ndarray:
    """Whether slices lie next to one that is known, (N, Z)."""
    return scipy.ndimage.binary_dilation(known, np.ones((1, 3), bool))


def standardised(off: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide by the standard error times how much larger the robust scatter is, (N, Z) each."""
    spread = np.maximum(error * scatter_of_slices(np.abs(off) / error), MIN_SPREAD)
    return off / spread, spread


def scatter_of_slices(size: np.ndarray) -> np.ndarray:
    """Robust scatter of sizes (N, Z) over the volumes and the slices near by, (Z,)."""
    known = np.isfinite(size)
    margins = np.pad(size, ((0, 0), (SPREAD_SLICES, SPREAD_SLICES)), constant_values=np.nan)
    near = np.lib.stride_tricks.sliding_window_view(margins, 2 * SPREAD_SLICES + 1, axis=1)
    scatter = MAD_TO_SIGMA * known_medians(near.swapaxes(0, 1).reshape(size.shape[1], -1))
    own = MAD_TO_SIGMA * known_medians(size.T)
    scatter = np.where(known.sum(axis=0) >= VOLUMES_FOR_OWN_SPREAD, np.fmax(scatter, own), scatter)
    return np.where(known.any(axis=0), scatter, np.nan)


def scatter_of_volumes(size: np.ndarray) -> np.ndarray:
    """Robust scatter of sizes (N, Z) over the slices of each volume, (N,); at least one."""
    enough = np.isfinite(size).sum(axis=1) >= SLICES_FOR_SCATTER
    return np.where(enough, np.fmax(1.0, MAD_TO_SIGMA * known_medians(size)), 1.0)

# SPDX-License-Identifier: Apache-2.0
"""How far the gains of slices are from what is expected of them.

- *Gain*. ``r`` is divided by the gain of its volume: the median of the slices near the best ones,
  so that a volume may lose most of its slices.
- *Scores*. ``z = (r − expected) / spread``. The spread is the standard error times the robust
  scatter of the standardised differences, over the volumes of the shell and the slices near by: a
  slice with few voxels scatters by noise, one near the skull base or an eye by more than that.
- *Profile*. Expected is the median over the volumes of the shell, and what the other slices of the
  volume differ from it (:mod:`.profiles`): a model that cannot predict a volume is wrong in slices
  side by side, by a smooth profile, and a slice that lost signal falls out of it.
- *Edges*. Points near the middle of a slice are used, where interpolation mixes in little, and a
  slice beside a much worse one is not flagged.
- *Threshold*. An outlier has ``z`` below ``Z_THRESHOLD`` and ``r`` below ``RATIO_THRESHOLD`` of
  what is expected (:mod:`.profiles`). Slices that were excited together are judged together as
  well: a group whose weighted mean is an outlier flags those of its slices that are below
  :data:`MEMBER_Z_THRESHOLD` themselves.
- *Mean square*. ``z_square`` compares the mean square of the residual in a slice with that of the
  other volumes, in units of the scatter that its number of points implies. It shows spikes, ghosts
  and losses of a part of a slice; it flags nothing.

Gains of signal have a positive ``z`` and are not flagged: no dephasing brightens a slice, and what
looks so is mostly a vessel or the slice beside the edge of the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eddymotion.data.acquisition import PLAIN, Slicing
from eddymotion.estimation.outliers.gains import SliceFit
from eddymotion.estimation.outliers.misfits import Misfits
from eddymotion.estimation.outliers.profiles import Profiles, is_low, standardised
from eddymotion.robust import known_medians
from eddymotion.wording import short_repr

MEMBER_Z_THRESHOLD = -2.0
"""What a slice of a group that is an outlier as a whole has to be below."""

LEAK = 0.35
"""A slice beside a worse one is an outlier of its own only if it lost more than this part of what
the other lost: at the edge of the brain neighbours differ, and the fit books some of the loss of
one on the other."""

MIN_VOLUMES = 6
"""With fewer volumes a robust spread over them means nothing."""

PARTED = 0.25
"""Gap between the shares of volumes that kept a slice and those that lost it."""

GAIN_QUANTILE, GAIN_MARGIN = 0.8, 0.1
"""The gain of a volume is that of its slices within this part of this quantile."""


@dataclass(frozen=True, eq=False)
class SliceOutliers:
    """Scores of all slices of all volumes.

    Parameters
    ----------
    z : (N, Z) array
        Robust z-score, negative where signal is lost; NaN where not judged.
    ratio : (N, Z) array
        Observed over expected signal; NaN where not judged. What is expected is the prediction,
        times the gain of the volume and what the slices near by differ from it.
    spread : (N, Z) array, optional
        Standard deviation of `ratio` in a slice that lost nothing.
    z_square : (N, Z) array, optional
        Robust z-score of the mean square of the residual.
    n_points : (N, Z) array, optional
        Points of the brain in the slice.
    gain : (N,) array, optional
        Observed over predicted signal of each volume where it lost nothing; NaN where not judged.
    slicing : Slicing
        Which image axis counts the slices, and which were excited together.
    unplaced : (N,) bool array, optional
        Volumes that agree with their prediction nowhere.
    misfits : Misfits, optional
        How much of each volume is unexplained where its slices kept their signal.
    """

    z: np.ndarray
    ratio: np.ndarray
    spread: np.ndarray | None = None
    z_square: np.ndarray | None = None
    n_points: np.ndarray | None = None
    gain: np.ndarray | None = None
    slicing: Slicing = PLAIN
    unplaced: np.ndarray | None = None
    misfits: Misfits | None = None

    __repr__ = short_repr

    @cached_property
    def flagged(self) -> np.ndarray:
        """True for outliers, (N, Z)."""
        low = is_low(self.z, self.ratio)
        with np.errstate(invalid="ignore"):
            member = self.z < MEMBER_Z_THRESHOLD
        for group in self.slicing.groups:
            if len(group) > 1:
                z, ratio = self.of_group(group)
                low[:, group] |= is_low(z, ratio)[:, None] & member[:, group]
        lost = np.where(low, 1 - self.ratio, 0.0)
        beside = np.zeros_like(lost)
        beside[:, 1:] = lost[:, :-1]
        beside[:, :-1] = np.maximum(beside[:, :-1], lost[:, 1:])
        return low & (lost > LEAK * beside)

    def of_group(self, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score slices as one: z and ratio, (N,) each; zero and one where none was judged."""
        z, ratio = self.z[:, group], self.ratio[:, group]
        spread = np.ones_like(z) if self.spread is None else self.spread[:, group]
        weights = np.where(np.isfinite(z), 1 / spread**2, 0.0)
        total = np.maximum(weights.sum(axis=1), np.finfo(float).tiny)
        off = (weights * np.nan_to_num(z) * spread).sum(axis=1)
        lost = (weights * np.nan_to_num(1 - ratio)).sum(axis=1)
        return off / np.sqrt(total), 1 - lost / total

    @property
    def judged(self) -> np.ndarray:
        """True for slices that have a score, (N, Z)."""
        return np.isfinite(self.z)


def score_slices(
    fits: Sequence[SliceFit | None],
    slicing: Slicing = PLAIN,
    groups: Sequence[np.ndarray] | None = None,
) -> SliceOutliers:
    """Turn the fits of N volumes into scores; those that are None have none.

    Parameters
    ----------
    fits : sequence
        At least one volume must have been fitted.
    slicing : Slicing
    groups : sequence of index arrays, optional
        Volumes of like contrast, which scatter alike; all when not given, or too small.
    """
    n_slices = next(len(fit.gain) for fit in fits if fit is not None)
    unknown = np.full(n_slices, np.nan)
    blank = SliceFit(unknown, unknown, unknown, np.zeros(n_slices, int))
    gain, error, square, n_points = map(
        np.array, zip(*(fit or blank for fit in fits), strict=True)
    )
    volume_gain = _volume_gains(gain)
    share, error = gain / volume_gain[:, None], error / volume_gain[:, None]
    z, ratio, spread = (np.full(share.shape, np.nan) for _ in range(3))
    for group in _large_enough(groups, len(fits)):
        off = share[group] - _usual_of_whole(share[group])
        judgement = Profiles.of(off, error[group], share[group]).judge()
        z[group], ratio[group], spread[group] = judgement.z, judgement.ratio, judgement.spread
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = square / known_medians(square)[:, None]
        z_square, _ = standardised(relative - _usual(relative), np.sqrt(2 / n_points))
    return SliceOutliers(z, ratio, spread, z_square, n_points, volume_gain, slicing)


def _large_enough(groups: Sequence[np.ndarray] | None, n: int) -> Sequence[np.ndarray]:
    """Return the groups if all of them are large enough; else all N volumes as one."""
    if groups and min(map(len, groups)) >= MIN_VOLUMES:
        return groups
    return [np.arange(n)]


def _usual(values: np.ndarray) -> np.ndarray:
    """Median over the volumes, (Z,); NaN where too few were judged."""
    enough = np.isfinite(values).sum(axis=0) >= MIN_VOLUMES
    usual = np.full(values.shape[1], np.nan)
    usual[enough] = np.nanmedian(values[:, enough], axis=0)
    return usual


def _usual_of_whole(share: np.ndarray) -> np.ndarray:
    """Usual share of slices that kept their signal, (Z,).

    Where many volumes lost the same slice, predictions lie between, and shares part in two: those
    that are brighter kept it.
    """
    usual = _usual(share)
    for slice_ in np.flatnonzero(np.isfinite(usual)):
        known = np.sort(share[np.isfinite(share[:, slice_]), slice_])
        first, last = MIN_VOLUMES // 2, len(known) - MIN_VOLUMES // 2
        gaps = np.diff(known)[first - 1 : last]
        if len(gaps) and gaps.max() > PARTED:
            usual[slice_] = np.median(known[first + gaps.argmax() :])
    return usual


def _volume_gains(gain: np.ndarray) -> np.ndarray:
    """Gain of each volume, (N,); NaN where no slice was judged."""
    gains = np.full(len(gain), np.nan)
    for volume in np.flatnonzero(np.isfinite(gain).any(axis=1)):
        known = gain[volume][np.isfinite(gain[volume])]
        best = np.quantile(known, GAIN_QUANTILE)
        near = known[np.abs(known - best) <= GAIN_MARGIN * best]
        gains[volume] = np.median(near if near.size else known)
    return gains

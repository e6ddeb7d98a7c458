# SPDX-License-Identifier: Apache-2.0
"""Slices that lost signal.

A head that moves during the diffusion gradients dephases whole slices, or all slices that were
excited together. At random points ``x`` of the brain, at height ``h`` (in slices) of a volume,
what the volume shows is compared with its leave-one-out prediction::

    y(x) = g(h) ŷ(x) + noise,    g a cubic spline

Where a volume is interpolated by a cubic spline, so is the gain of its slices: ``r_k = g(k)`` is
the share of its signal that slice ``k`` has kept, whatever the slices beside it have lost. Least
squares give ``r`` and, from the residual and the number of points in the slice, its standard
error.

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
  other volumes, in units of what it scatters with so many points. It tells of spikes, ghosts and
  losses of a part of a slice; it flags nothing.

Gains of signal have a positive ``z`` and are not flagged: no dephasing brightens a slice, and what
looks so is mostly a vessel or the slice beside the edge of the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import scipy

from eddymotion.data.acquisition import PLAIN, Slicing
from eddymotion.estimation.outliers.misfits import Misfits
from eddymotion.estimation.outliers.profiles import (
    MIN_SPREAD,
    Profiles,
    is_low,
    standardised,
)
from eddymotion.estimation.outliers.slice_kernels import SliceSums
from eddymotion.images.image import Image
from eddymotion.images.stack import SliceWeights
from eddymotion.robust import known_medians
from eddymotion.wording import short_repr

MEMBER_Z_THRESHOLD = -2.0
"""What a slice of a group that is an outlier as a whole has to be below."""

LEAK = 0.35
"""A slice beside a worse one is an outlier of its own only if it lost more than this part of what
the other lost: at the edge of the brain neighbours differ, and the fit books some of the loss of
one on the other."""

OFF_MIDDLE = 0.3
"""Points so far (slices) from the middle of a slice count: interpolation mixes in little of the
slices beside it there."""

MIN_POINTS_IN_SLICE = 25
"""Slices with fewer points are not judged."""

MIN_VOLUMES = 6
"""With fewer volumes a robust spread over them means nothing."""

GAIN_QUANTILE, GAIN_MARGIN = 0.8, 0.1
"""Slices within this part of that quantile of a volume tell its gain."""

VARIATION = 0.35
"""About the SD over the mean of a diffusion-weighted signal in the brain."""

MANY_LOST, WEAK_VOLUME = 0.5, 0.5
"""A volume that lost more than this part of its slices, or that has less than this part of the
predicted signal throughout, is beyond repair."""

RIDGE = 1e-6
"""Pull of the gains to one, relative to the largest entry of their normal matrix."""

LEAST_SHARE = 0.1
"""What is left of a slice is amplified to no more than the inverse of this."""


class SliceFit(NamedTuple):
    """A volume against its prediction, slice by slice, (Z,) each; NaN with too few points.

    Parameters
    ----------
    gain : array
        Share of the predicted signal that is there.
    error : array
        Its standard error.
    mean_square : array
        Of the residual.
    n_points : array
    """

    gain: np.ndarray
    error: np.ndarray
    mean_square: np.ndarray
    n_points: np.ndarray


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


def percent_lost(outliers: SliceOutliers) -> np.ndarray:
    """Percentage of the slices judged of each volume that lost signal, (N,); 0 where none was."""
    n_judged = outliers.judged.sum(axis=1)
    return 100.0 * outliers.flagged.sum(axis=1) / np.maximum(n_judged, 1)


def share_lost(outliers: SliceOutliers) -> np.ndarray:
    """Part of the slices judged of each volume that lost signal, (N,); 0 where none was."""
    return percent_lost(outliers) / 100.0


def correlation_left(share: np.ndarray) -> np.ndarray:
    """Return what losing a share of the slices leaves of a correlation with the prediction.

    Where slices become zero and the rest stays as predicted, with ``c`` the SD over the mean of
    the signal in the brain, a correlation of 1 falls to ``c √(1 − s) / √(c² + s)``.
    """
    share = np.clip(share, 0, 1)
    return VARIATION * np.sqrt(1 - share) / np.sqrt(VARIATION**2 + share)


def volumes_beyond_repair(outliers: SliceOutliers) -> np.ndarray:
    """Find volumes better left out, for a reason of :func:`reasons_beyond_repair`.

    Returns
    -------
    index array
    """
    return np.array(sorted(reasons_beyond_repair(outliers)), int)


def reasons_beyond_repair(outliers: SliceOutliers) -> dict[int, str]:
    """Say which volumes are better left out, and why: the gravest reason of each."""
    lost, unplaced = percent_lost(outliers), outliers.unplaced
    gain = np.full(len(lost), np.nan) if outliers.gain is None else outliers.gain
    reasons: dict[int, str] = {}
    if (misfits := outliers.misfits) is not None:
        for volume in np.flatnonzero(misfits.beyond_repair):
            times = f"{misfits.times[volume]:.1f} times as much"
            reasons[int(volume)] = (
                f"at no pose is it as predicted: {times} as usual is unexplained"
            )
    for volume in np.flatnonzero(lost > 100 * MANY_LOST):
        reasons[int(volume)] = f"{lost[volume]:.0f} % of its slices lost signal"
    for volume in np.flatnonzero(np.nan_to_num(gain, nan=1.0) < WEAK_VOLUME):
        reasons[int(volume)] = f"{100 * gain[volume]:.0f} % of its signal is left throughout"
    for volume in () if unplaced is None else np.flatnonzero(unplaced):
        reasons[int(volume)] = "it could not be placed"
    return dict(sorted(reasons.items()))


def describe_outliers(outliers: SliceOutliers) -> str:
    """Say how many slices are outliers, and in which volumes most."""
    n_lost, n_judged = int(outliers.flagged.sum()), int(outliers.judged.sum())
    if not n_lost:
        return f"0 of {n_judged}"
    percent = percent_lost(outliers)
    worst = int(np.argmax(percent))
    n_volumes = int((percent > 0).sum())
    return (
        f"{n_lost} of {n_judged} ({100 * n_lost / n_judged:.1f} %) in {n_volumes} "
        f"volume{'s' if n_volumes > 1 else ''}, most in volume {worst} ({percent[worst]:.0f} %)"
    )


def describe_beyond_repair(outliers: SliceOutliers) -> str | None:
    """Name the volumes beyond repair, for a warning; None where there are none."""
    reasons = reasons_beyond_repair(outliers)
    if not reasons:
        return None
    several = len(reasons) > 1
    named = (f"{volume}: {why}" if several else why for volume, why in reasons.items())
    return (
        f"volume{'s' * several} {', '.join(map(str, reasons))} (counted from 0) beyond repair, "
        f"better left out of the analysis ({'; '.join(named)})"
    )


def slice_heights(points: np.ndarray, affine: np.ndarray, axis: int = 2) -> np.ndarray:
    """Where points (P, 3) of an image, RAS+ mm, are along its slice axis, in slices: (P,)."""
    row = slice_row(affine, axis)
    return points @ row[:3] + row[3]


def slice_row(affine: np.ndarray, axis: int = 2) -> np.ndarray:
    """Return what takes a point of an image, RAS+ mm and 1, to its slice, (4,)."""
    return np.linalg.inv(affine)[axis]


def is_lost(flags: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Whether points lie in a flagged slice or in one beside it, which interpolation mixes with.

    Parameters
    ----------
    flags : (Z,) bool array
        Of one volume.
    height : (V,) array
        Where the points are along the slice axis of the volume, in slices.
    """
    index = np.rint(height).astype(int)
    inside = (index >= 0) & (index < len(flags))
    return inside & scipy.ndimage.binary_dilation(flags)[np.clip(index, 0, len(flags) - 1)]


def rescaled(image: Image, outliers: SliceOutliers, volume: int) -> Image:
    """Amplify what is left of the signal of lost slices to what there should be.

    A filter spreads a dark slice over those beside it: slices that get no weight spoil others that
    do. What is amplified is mostly noise, but on the level of its surroundings.

    Parameters
    ----------
    image : Image
        The original volume.
    outliers : SliceOutliers
    volume : int
        Its index.
    """
    flags = outliers.flagged[volume]
    if not flags.any():
        return image
    share = np.where(flags, np.clip(outliers.ratio[volume], LEAST_SHARE, 1.0), 1.0)
    shape = np.ones(3, int)
    shape[outliers.slicing.axis] = len(share)
    return replace(image, data=image.data / share.reshape(shape).astype(np.float32))


def spline_through(values: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Interpolate values of slices (Z, m) at heights (P,) as a volume is: (P, m).

    Zero farther than half a slice outside.
    """
    n_slices = len(values)
    inside = (height >= -0.5) & (height <= n_slices - 0.5)
    result = np.zeros((len(height), values.shape[1]))
    knots, weights = _spline_weights(height[inside].astype(float), n_slices)
    coefficients = np.linalg.solve(_at_slices(n_slices), values.astype(float))
    result[inside] = np.einsum("kp,kpm->pm", weights, coefficients[knots])
    return result


def fit_slices(
    observed: np.ndarray,
    predicted: np.ndarray,
    height: np.ndarray,
    n_slices: int,
    mixture: SliceWeights | None = None,
) -> SliceFit:
    """Fit the gain of each slice of a volume to its prediction.

    Parameters
    ----------
    observed, predicted : (V,) array
        NaN where not known.
    height : (V,) array
        Where the points are along the slice axis of the volume, in slices.
    n_slices : int
    mixture : SliceWeights, optional
        Which slices make up what is observed, where the head moved within the volume; as those
        of an image are interpolated when not given.
    """
    if mixture is None:
        sums = SliceSums.of_spline(observed, predicted, height, n_slices, OFF_MIDDLE)
        at_knots = _at_slices(n_slices)
    else:
        sums = _sums_of_mixture(observed, predicted, height, n_slices, mixture)
        at_knots = np.eye(n_slices)
    normal, n_points = sums.normal.copy(), sums.n_points
    normal[np.diag_indices(n_slices)] += RIDGE * max(normal.max(), np.finfo(float).tiny)
    covariance = np.linalg.inv(normal)
    change = covariance @ sums.slopes
    misfit = sums.squares.sum() - 2 * change @ sums.slopes + change @ sums.normal @ change
    n_all = n_points.sum()
    error = np.sqrt(((at_knots @ covariance) * at_knots).sum(axis=1))
    error *= np.sqrt(max(misfit, 0.0) / n_all) if n_all else np.nan
    squares = sums.squares / np.maximum(n_points, 1)
    enough = n_points >= MIN_POINTS_IN_SLICE
    gain, error, squares = (
        np.where(enough, column, np.nan) for column in (1 + at_knots @ change, error, squares)
    )
    return SliceFit(gain, error, squares, n_points)


def _sums_of_mixture(
    observed: np.ndarray,
    predicted: np.ndarray,
    height: np.ndarray,
    n_slices: int,
    mixture: SliceWeights,
) -> SliceSums:
    """Sum as :meth:`SliceSums.of_spline`, of points that are a mixture of slices."""
    index = np.rint(height).astype(int)
    counted = (np.abs(height - index) < OFF_MIDDLE) & (index >= 0) & (index < n_slices)
    counted &= np.isfinite(observed) & np.isfinite(predicted)
    index = index[counted]
    y, p = (values[counted].astype(float) for values in (observed, predicted))
    knots, weights = _mixed_weights(mixture, counted, n_slices)
    normal, slopes = np.zeros((n_slices, n_slices)), np.zeros(n_slices)
    for a in range(len(knots)):
        slopes += np.bincount(knots[a], weights[a] * p * (y - p), n_slices)
        for b in range(a + 1):
            cells = knots[a] * n_slices + knots[b]
            entries = np.bincount(cells, weights[a] * weights[b] * p * p, n_slices**2)
            entries = entries.reshape(n_slices, n_slices)
            normal += entries if a == b else entries + entries.T
    squares = np.bincount(index, (y - p) ** 2, n_slices)
    return SliceSums(normal, slopes, squares, np.bincount(index, minlength=n_slices))


def _spline_weights(height: np.ndarray, n_slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Which coefficients of a cubic spline, mirrored at the ends, make its values: (4, V) each."""
    last = n_slices - 1
    height = last - np.abs(last - np.abs(height))
    first = np.floor(height).astype(int)
    t = height - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t + t**2 - t**3) + 1, t**3]
    ) / 6  # fmt: skip
    knots = np.abs(first + np.arange(-1, 3)[:, None])
    return last - np.abs(last - knots), weights


def _mixed_weights(
    mixture: SliceWeights, points: np.ndarray, n_slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which slices make up what is observed at some of the points, and how much: (8, V) each."""
    weights = mixture.weights[points].T.astype(float)
    slices = mixture.first[points] + np.arange(len(weights))[:, None]
    return np.minimum(slices, n_slices - 1), weights


@lru_cache(maxsize=1)
def _at_slices(n_slices: int) -> np.ndarray:
    """Coefficients of the spline → its values at the slices, (Z, Z)."""
    knots, weights = _spline_weights(np.arange(n_slices, dtype=float), n_slices)
    values = np.zeros((n_slices, n_slices))
    np.add.at(values, (np.broadcast_to(np.arange(n_slices), knots.shape), knots), weights)
    values.flags.writeable = False
    return values


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
        off = share[group] - _usual(share[group])
        judgement = Profiles.of(off, error[group], share[group]).judge()
        z[group], ratio[group], spread[group] = judgement.z, judgement.ratio, judgement.spread
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = square / known_medians(square)[:, None]
        z_square, _ = standardised(relative - _usual(relative), np.sqrt(2 / n_points), MIN_SPREAD)
    return SliceOutliers(z, ratio, spread, z_square, n_points, volume_gain, slicing)


def _large_enough(groups: Sequence[np.ndarray] | None, n: int) -> Sequence[np.ndarray]:
    """Return groups that each tell what is usual; all N volumes where one of them does not."""
    if groups and min(map(len, groups)) >= MIN_VOLUMES:
        return groups
    return [np.arange(n)]


def _usual(values: np.ndarray) -> np.ndarray:
    """Median over the volumes, (Z,); NaN where too few were judged."""
    enough = np.isfinite(values).sum(axis=0) >= MIN_VOLUMES
    usual = np.full(values.shape[1], np.nan)
    usual[enough] = np.nanmedian(values[:, enough], axis=0)
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

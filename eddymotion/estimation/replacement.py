# SPDX-License-Identifier: Apache-2.0
"""Replacing lost signal by predictions.

Voxels of the corrected series that come from slices without signal are replaced by their
prediction from the other volumes, with the gain of the volume. Interpolation mixes the slices
beside a voxel: let ``a`` be the share of lost slices in it, a cubic spline through the flags, and
``m`` the share of the signal that is missing because of them, the spline through ``flag · (1 −
r)`` (:mod:`eddymotion.estimation.outliers`). Then ::

    y ← (1 − w) (y + m ŷ) + w ŷ,    w from 0 at a = 0.1 to 1 at a = 0.3

A voxel of a lost slice is prediction alone; half-way to the next slice there is no seam; and the
ripple that interpolation makes of a dark slice within two slices of it is filled. All other voxels
stay the same to the last bit.

If the head moved within a volume, its voxels are mixtures of slices with other weights
(:mod:`eddymotion.images.stack`), which take the place of those of the spline. In a gap between
slices nothing was recorded, and the voxel is prediction alone.

Other volumes may have lost slices at the same voxel. They are held out there, too
(:func:`eddymotion.estimation.held_out.fill_in`).

The predictions are made first, block by block; only they are kept, sixteen bytes for each affected
voxel of each volume. Then the corrected volumes are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import scipy

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.series import Series
from eddymotion.estimation.blocks import Blocks
from eddymotion.estimation.held_out import predict_lost
from eddymotion.estimation.outliers import SliceOutliers, is_lost, spline_through
from eddymotion.machine.parallel import Progress, parallel_map, silent
from eddymotion.models import Model
from eddymotion.resampling import Resampled

LEAST_SHARE = 0.04
"""Voxels with a smaller share of lost slices are left alone: those more than two slices away."""

FROM_SHARE, TO_SHARE = 0.1, 0.3
"""Shares of lost slices at which the prediction begins to count, and at which it alone does."""


@dataclass(frozen=True, eq=False, repr=False)
class Replaced(Series):
    """A corrected series that shows predictions where slices lost their signal, or left gaps.

    Parameters
    ----------
    corrected : Resampled
    outliers : SliceOutliers
        Of the original volumes, found under the same motion.
    predictions : tuple of N :class:`Predicted`
        For each volume, what the others predict for its affected voxels.
    lost : bool
        Whether they stand in for slices that lost signal, too, not for gaps alone.
    affine, acquisition, mask, source
        Those of `corrected`.
    """

    corrected: Resampled
    outliers: SliceOutliers
    predictions: tuple[Predicted, ...]
    affine: np.ndarray
    acquisition: Acquisition
    mask: np.ndarray
    lost: bool
    source: Path | None

    @classmethod
    def of(
        cls,
        corrected: Resampled,
        model: Model,
        outliers: SliceOutliers,
        *,
        lost: bool = True,
        n_threads: int = 1,
        progress: Progress = silent,
    ) -> Replaced:
        """Predict what is lost, and what was not recorded.

        Parameters
        ----------
        corrected : Resampled
        model : Model
            Fitted: that of :class:`~eddymotion.estimation.quality.Quality`.
        outliers : SliceOutliers
        lost : bool
            Whether slices that lost signal are predicted; gaps are in any case.
        n_threads : int
            The result does not depend on it.
        progress : callable
            See :class:`~eddymotion.machine.parallel.Progress`.
        """
        blocks, (x, y, _) = Blocks.of(corrected, n_threads), corrected.shape
        parts: list[list[Predicted]] = [[] for _ in range(len(corrected))]
        shown = outliers if lost else None
        if (lost and outliers.flagged.any()) or corrected.motion.moved_within.any():
            slabs = list(blocks.slabs())
            for slab in progress(slabs, "predicting what is missing", len(slabs)):
                affected = _affected_in(blocks, slab, shown)
                predicted = _predict(blocks, slab, affected, model)
                for part, where, values in zip(parts, affected, predicted, strict=True):
                    part.append(Predicted.of(where, values, slab.start * x * y))
        return cls(
            corrected,
            outliers,
            tuple(map(Predicted.joined, parts)),
            corrected.affine,
            corrected.acquisition,
            corrected.mask,
            lost,
            corrected.source,
        )

    def volumes(self) -> Iterator[np.ndarray]:
        """Give the volumes one after the other, (X, Y, Z) float32 each."""
        return self.replacing(self.corrected.volumes())

    def replacing(self, volumes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the volumes of the corrected series through, and put the predictions in."""
        for index, (volume, predicted) in enumerate(zip(volumes, self.predictions, strict=True)):
            gain = 1.0 if self.outliers.gain is None else self.outliers.gain[index]
            yield predicted.put_into(volume, gain if np.isfinite(gain) else 1.0)


@dataclass(frozen=True, eq=False)
class Affected:
    """The voxels of a slab in which a volume shows something of its lost slices, or nothing.

    Parameters
    ----------
    voxels : (P,) index array
        Into the slab, x fastest.
    weight : (P,) float32 array
        Of the prediction.
    missing : (P,) float32 array
        Share of the signal that is missing.
    """

    voxels: np.ndarray
    weight: np.ndarray
    missing: np.ndarray


NONE_AFFECTED = Affected(np.empty(0, int), *np.empty((2, 0), np.float32))


@dataclass(frozen=True, eq=False)
class Predicted(Affected):
    """What other volumes predict for the affected voxels of a volume.

    Parameters
    ----------
    voxels : (P,) int32 array
        Into the volume, x fastest.
    weight, missing
        As of :class:`Affected`.
    values : (P,) float32 array
    """

    values: np.ndarray

    @classmethod
    def of(cls, where: Affected, values: np.ndarray, start: int) -> Predicted:
        """Keep what is known of a slab whose voxels are those from `start` on."""
        known = np.isfinite(values)
        voxels = (start + where.voxels[known]).astype(np.int32)
        return cls(voxels, where.weight[known], where.missing[known], values[known])

    @staticmethod
    def joined(parts: Sequence[Predicted]) -> Predicted:
        """Join what is known of the slabs of a volume."""
        nothing = Predicted(np.empty(0, np.int32), *np.empty((3, 0), np.float32))
        names = [field.name for field in fields(Predicted)]
        return Predicted(
            *(np.concatenate([getattr(part, name) for part in (nothing, *parts)])
              for name in names)
        )  # fmt: skip

    def put_into(self, volume: np.ndarray, gain: float) -> np.ndarray:
        """Show the predictions, times the gain of the volume, in a copy of it."""
        if not len(self.voxels):
            return volume
        flat, weight, predicted = volume.T.ravel(), self.weight, self.values * gain
        shown = flat[self.voxels] + self.missing * predicted
        flat[self.voxels] = (1 - weight) * shown + weight * predicted
        return flat.reshape(volume.shape[::-1]).T


def affected_voxels(
    blocks: Blocks, slab: slice, volume: int, outliers: SliceOutliers | None
) -> Affected:
    """Find the voxels of a slab in which a volume shows something of its lost slices, or nothing.

    Without `outliers`, gaps alone.
    """
    lost, slices = _lost_shares(outliers, volume), blocks.slices(volume, slab)
    if lost is None and slices is None:
        return NONE_AFFECTED
    if slices is not None:
        gaps = slices.gaps
        shares = np.zeros((len(gaps), 2)) if lost is None else slices.weights.mixed(lost)
        shares[gaps] = 1.0, 0.0
        voxels = np.flatnonzero(shares[:, 0])
        share, missing = shares[voxels].T
    else:
        assert lost is not None
        assert outliers is not None
        heights = blocks.heights(volume, blocks.points(slab), outliers.slicing.axis)
        voxels = np.flatnonzero(is_lost(scipy.ndimage.binary_dilation(lost[:, 0] > 0), heights))
        share, missing = spline_through(lost, heights[voxels]).T
    kept = np.abs(share) >= LEAST_SHARE
    weight = np.clip((share[kept] - FROM_SHARE) / (TO_SHARE - FROM_SHARE), 0, 1)
    return Affected(voxels[kept], weight.astype(np.float32), missing[kept].astype(np.float32))


def _lost_shares(outliers: SliceOutliers | None, volume: int) -> np.ndarray | None:
    """Return which slices of a volume lost signal and how much of it, (Z, 2); None where none."""
    if outliers is None or not outliers.flagged[volume].any():
        return None
    flags = outliers.flagged[volume]
    lost = np.where(flags, np.clip(1 - outliers.ratio[volume], 0, 1), 0.0)
    return np.stack([flags, lost], axis=1)


def _affected_in(blocks: Blocks, slab: slice, outliers: SliceOutliers | None) -> list[Affected]:
    volumes = range(len(blocks.series))
    return parallel_map(
        lambda volume: affected_voxels(blocks, slab, volume, outliers),
        volumes,
        n_threads=blocks.n_threads,
    )


def _predict(
    blocks: Blocks, slab: slice, affected: list[Affected], model: Model
) -> list[np.ndarray]:
    """Predict the affected voxels of a slab, volume by volume."""
    n_voxels = len(blocks.points(slab))
    touched = np.zeros(n_voxels, bool)
    for where in affected:
        touched[where.voxels] = True
    voxels, place = np.flatnonzero(touched), np.cumsum(touched) - 1
    if not len(voxels):
        return [np.empty(0, np.float32)] * len(affected)
    lost = np.zeros((len(affected), len(voxels)), bool)
    for row, where in zip(lost, affected, strict=True):
        row[place[where.voxels[where.weight > 0]]] = True
    signal = blocks.read(slab, voxels)
    predicted = predict_lost(signal, lost.T, blocks.series.gradients, model)
    return [
        predicted[place[where.voxels], volume].astype(np.float32)
        for volume, where in enumerate(affected)
    ]

# SPDX-License-Identifier: Apache-2.0
"""A volume as a continuous function, kept only where points are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from eddymotion.images.compact_kernels import (
    LARGEST,
    MISSING,
    gather,
    sample_kept,
    sample_kept_with_gradient,
    widen,
)
from eddymotion.images.image import Continuous, Spline, as_points
from eddymotion.images.kernels import PADDING
from eddymotion.wording import short_repr

NOWHERE = 2**14
"""Beyond all voxels of an image."""

MOST_OF_MEDIAN, EVERY_FOR_MEDIAN = 1000.0, 32
"""Largest coefficient that is kept as it is, relative to the median size of every 32nd. In
heads the largest are 30 to 100 times as large."""


@dataclass(frozen=True, eq=False)
class CompactSpline(Continuous):
    """A :class:`Spline` that is kept around some points, in 16-bit integers.

    Where the points are those of a brain, it takes about a quarter of the memory of the box around
    it. A coefficient is off by at most half a unit, 1/65534 of the largest one. A thousand times
    the usual size is the largest: voxels that show no head may not make all others coarse.

    Parameters
    ----------
    values : (K,) int16 array
        The coefficients that are kept, row by row.
    unit : float32
        What an integer stands for.
    starts : (Z + 4, Y + 4) int32 array
        Where in `values` each row would start if it were there from its first coefficient on.
    first, last : (Z + 1, Y + 1) int16 array
        Of the cells along x that can be read, for each cell along z and y, counted from the one
        before the first voxel.
    size : three int
        Z, Y, X
    affine : (4, 4) array
        Voxel indices → RAS+ mm.
    """

    values: np.ndarray
    unit: np.float32
    starts: np.ndarray
    first: np.ndarray
    last: np.ndarray
    size: tuple[int, int, int]
    affine: np.ndarray

    __repr__ = short_repr

    @classmethod
    def around(cls, points: np.ndarray, spline: Spline, slack: int) -> CompactSpline:
        """Keep the samples at world points (P, 3), and between those of a row.

        Parameters
        ----------
        points : (P, 3) array
            mm
        spline : Spline
        slack : int
            Voxels by which they may move.
        """
        z, y, x = (n - 2 * PADDING for n in spline.coefficients.shape)
        first, last = _cells((z, y, x), spline.mapping(None), points, slack)
        begin, end = _rows(first, last)
        n_kept = np.maximum(end - begin, 0)
        kept = np.empty(n_kept.sum(), np.float32)
        gather(spline.coefficients, begin, end, kept)
        values, unit = _as_integers(kept)
        starts = (np.cumsum(n_kept).reshape(n_kept.shape) - n_kept - begin).astype(np.int32)
        first, last = first.astype(np.int16), last.astype(np.int16)
        return cls(values, unit, starts, first, last, (z, y, x), spline.affine)

    def sample(self, points: np.ndarray, pose: np.ndarray | None = None) -> np.ndarray:
        """Return samples (P,), as of a :class:`Spline`; NaN also where nothing is kept."""
        sampled = np.empty(len(points), np.float32)
        sample_kept(*self._kept, self.mapping(pose), as_points(points), sampled)
        return sampled

    def sample_with_gradient(
        self, points: np.ndarray, pose: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return samples (P,) and gradients (P, 3); NaN as of :meth:`sample`."""
        sampled = np.empty(len(points), np.float32)
        slopes = np.empty((3, len(points)), np.float32)
        sample_kept_with_gradient(
            *self._kept, self.mapping(pose), as_points(points), sampled, slopes
        )
        return sampled, slopes.T

    @property
    def _kept(self) -> tuple:
        return self.values, self.starts, self.first, self.last, self.size, self.unit


def _as_integers(kept: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Round coefficients (K,) to multiples of a unit; NaN to what stands for it."""
    largest = float(max(np.fmax.reduce(kept, initial=0.0), -np.fmin.reduce(kept, initial=0.0)))
    some = np.abs(kept[::EVERY_FOR_MEDIAN])
    some = some[np.isfinite(some)]
    if 2 * np.count_nonzero(some * MOST_OF_MEDIAN >= largest) < len(some):  # a median takes long
        usual = float(np.median(some))
        largest = min(largest, MOST_OF_MEDIAN * usual) if usual else largest
    unit = np.float32(max(largest / LARGEST, float(np.finfo(np.float32).tiny)))
    rounded = np.rint(kept / unit)
    np.clip(rounded, -LARGEST, LARGEST, out=rounded)
    with np.errstate(invalid="ignore"):
        values = rounded.astype(np.int16)
    values[~np.isfinite(kept)] = MISSING
    return values, unit


def _cells(
    size: tuple[int, ...], to_voxels: np.ndarray, points: np.ndarray, slack: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the first and last cell along x for each cell along z and y: (Z + 1, Y + 1) int."""
    cells = size[0] + 1, size[1] + 1
    first, last = np.full(cells, NOWHERE, np.int32), np.full(cells, -NOWHERE, np.int32)
    widen(to_voxels, as_points(points), first, last)
    wide = 2 * slack + 1
    first, last = (
        scipy.ndimage.minimum_filter(first, wide) - slack,
        scipy.ndimage.maximum_filter(last, wide) + slack,
    )
    return np.maximum(first, -1), np.minimum(last, size[2] - 1)


def _rows(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where the rows begin and end that the cells need, padding included."""
    around = ((3, 3), (3, 3))
    first, last = (
        np.pad(first, around, constant_values=NOWHERE),
        np.pad(last, around, constant_values=-NOWHERE),
    )
    begin, end = _of_four_by_four(first, np.minimum) + 1, _of_four_by_four(last, np.maximum) + 5
    return np.where(begin < end, begin, 0), np.where(begin < end, end, 0)


def _of_four_by_four(edge: np.ndarray, choose: np.ufunc) -> np.ndarray:
    """Choose among the values of each 4×4 window of an edge (A + 3, B + 3): (A, B)."""
    rows = choose.reduce([edge[k : len(edge) - 3 + k] for k in range(4)])
    columns = rows.T
    return choose.reduce([columns[k : len(columns) - 3 + k] for k in range(4)]).T

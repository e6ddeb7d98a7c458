# SPDX-License-Identifier: Apache-2.0
"""All volumes of an aligned series at some voxels, block by block of its grid.

What compares volumes voxel by voxel needs all of them there. A block is a slab of the third axis
of the grid, small beside the series: the aligned series is never held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eddymotion.data.series import DWI, Series
from eddymotion.estimation.outliers import slice_heights
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.images.pyramid import SPLINE_VOXELS, crop
from eddymotion.images.stack import SlicesAtPoints
from eddymotion.machine.parallel import parallel_map
from eddymotion.resampling import Resampled

SHARE_OF_SERIES = 1 / 8
LEAST_BYTES, MOST_BYTES = 2**25, 2**28
"""Part of the series, as float32, that a block contains, and the limits of its size."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Access to an aligned series by slabs.

    Parameters
    ----------
    series : DWI or Resampled
    n_threads : int
    """

    series: DWI | Resampled
    n_threads: int

    @classmethod
    def of(cls, series: Series, n_threads: int = 1) -> Blocks:
        """Take a series, or the one from which it was made."""
        while not isinstance(series, (DWI, Resampled)):
            series = series.corrected  # type: ignore[attr-defined]
        return cls(series, n_threads)

    def slabs(self) -> Iterator[slice]:
        """Split the third axis of the grid."""
        x, y, z = self.series.shape
        plane = 4 * x * y * len(self.series)
        size = min(max(SHARE_OF_SERIES * plane * z, LEAST_BYTES), MOST_BYTES)
        thickness = max(1, int(size / plane))
        return (slice(k, min(k + thickness, z)) for k in range(0, z, thickness))

    def points(self, slab: slice) -> np.ndarray:
        """Where the voxels of a slab are in the reference frame, RAS+ mm: (P, 3), x fastest."""
        series = self.series
        if not isinstance(series, Resampled):
            return grid_points(series.shape, series.affine, order="F", slab=slab)
        if series.points is not None:
            return series.points[slab].reshape(-1, 3)
        return grid_points(series.shape, series.to_reference, order="F", slab=slab)

    def heights(self, volume: int, points: np.ndarray, axis: int = 2) -> np.ndarray:
        """Where points (P, 3) are along the slice axis of an original volume, in slices: (P,)."""
        series = self.series
        if isinstance(series, DWI):
            return slice_heights(points, series.affine, axis)
        recorded = series.motion.recorded(volume, points)
        return slice_heights(recorded, series.original.affine, axis)

    def moved_within(self, volume: int) -> bool:
        """Whether the head moved within an original volume."""
        series = self.series
        return isinstance(series, Resampled) and bool(series.motion.moved_within[volume])

    def slices(self, volume: int, slab: slice) -> SlicesAtPoints | None:
        """Say where the voxels of a slab are in the slices of an original volume.

        None where the head was at rest within the volume: it is one image.
        """
        series = self.series
        if isinstance(series, DWI) or not self.moved_within(volume):
            return None
        there = None if series.field is None else series.field.of_slab(slab)
        mapping = series.motion.mapping(volume)
        return mapping.slices_at(self.points(slab), series.original.shape, there)

    def read(self, slab: slice, voxels: np.ndarray) -> np.ndarray:
        """Read all volumes at some voxels (P,) of a slab: (P, N) float32, zero outside a volume.

        Of a :class:`~eddymotion.resampling.Resampled`, with the compiled kernel.
        """
        series = self.series
        values = np.empty((len(series), len(voxels)), np.float32)
        if isinstance(series, DWI):
            for volume in range(len(series)):
                values[volume] = series.signal[:, :, slab, volume].T.ravel()[voxels]
            return values.T
        points, there = self.points(slab)[voxels], None
        if series.field is not None:
            hertz, slopes = series.field.of_slab(slab)
            there = hertz[voxels], slopes[voxels]
        original, motion = series.original, series.motion
        floor = 0.0 if all(volume.min() >= 0 for volume in original.volumes()) else -np.inf
        margin = SPLINE_VOXELS * float(original.voxel_sizes.max())

        def read(volume: int) -> None:
            mapping = motion.mapping(volume)
            if mapping.slices is None:
                recorded, factor = mapping.displaced(points, there)
                image: Image = crop(original.volume(volume), recorded, margin)
                read = image.spline.sample(recorded) * factor
            else:
                read = mapping.rebuild(original.volume(volume), points, there)
            values[volume] = np.maximum(np.nan_to_num(read), floor)

        if len(voxels):
            parallel_map(read, range(len(series)), n_threads=self.n_threads)
        return values.T

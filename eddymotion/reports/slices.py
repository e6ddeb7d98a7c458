# SPDX-License-Identifier: Apache-2.0
"""What pictures need of a series, kept while its volumes pass: three planes and some points.

A report shows three planes of every volume and measures over the brain. Neither needs the whole
series: :class:`Slices` watches the volumes on their way to the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from eddymotion.data.series import Series
from eddymotion.images.grid import grid_points
from eddymotion.machine.parallel import parallel_iterate

N_POINTS = 20_000
"""About as many voxels of the brain stand for all of it where something is measured."""

PLANES = ("sagittal", "coronal", "axial")
"""A plane is named by what it cuts; plane ``k`` lies across axis ``k`` of RAS+."""

CUTS = (0.42, 0.5, 0.58)
"""Where the planes cut the brain, as parts of its extent; beside the midline, through the
ventricles."""


@dataclass(frozen=True, eq=False)
class PlaneGrid:
    """The grid of a series with the axes closest to RAS+, and three planes through the head.

    Parameters
    ----------
    affine : (4, 4) array
        Voxel indices of the turned image → RAS+ mm.
    mask : (X, Y, Z) bool array
        The brain, turned.
    cuts : (3,) tuple of int
        Index of the sagittal, the coronal and the axial plane.
    """

    affine: np.ndarray
    mask: np.ndarray
    cuts: tuple[int, int, int]

    @classmethod
    def of(cls, series: Series) -> PlaneGrid:
        """Turn the grid of a series and lay the planes through its brain."""
        return cls.through(series.mask, series.affine)

    @classmethod
    def through(cls, mask: np.ndarray, affine: np.ndarray) -> PlaneGrid:
        """Turn a grid and lay the planes through what a mask (X, Y, Z) marks in it."""
        turn = io_orientation(affine)
        turned = apply_orientation(mask, turn).astype(bool)
        inside = np.argwhere(turned)
        low, high = inside.min(axis=0), inside.max(axis=0)
        x, y, z = (int(a + part * (b - a)) for a, b, part in zip(low, high, CUTS, strict=True))
        return cls(affine @ inv_ornt_aff(turn, mask.shape), turned, (x, y, z))

    @property
    def sizes(self) -> np.ndarray:
        """Edge lengths of a voxel, mm."""
        return voxel_sizes(self.affine)

    def same_as(self, other: PlaneGrid) -> bool:
        """Whether the voxels are the same."""
        return self.mask.shape == other.mask.shape and bool(
            np.allclose(self.affine, other.affine, atol=1e-3)
        )

    def plane(self, name: str, volume: np.ndarray) -> np.ndarray:
        """Cut a turned volume; the axes that are left stay in the order x, y, z."""
        axis = PLANES.index(name)
        return np.moveaxis(volume, axis, 0)[self.cuts[axis]]

    def plane_points(self, name: str) -> np.ndarray:
        """Positions of the voxels of a plane, (…, 3), RAS+ mm."""
        axis = PLANES.index(name)
        shape, cut = self.mask.shape, self.cuts[axis]
        points = grid_points(shape, self.affine, slab=slice(cut, cut + 1), axis=axis)
        return points.reshape(*np.delete(shape, axis), 3)


class Slices:
    """Three planes of all volumes and points of the brain, with the axes closest to RAS+.

    Parameters
    ----------
    series : Series

    Attributes
    ----------
    grid : PlaneGrid
        On which the planes lie.
    planes : dict
        ``sagittal`` (Y, Z, N), ``coronal`` (X, Z, N), ``axial`` (X, Y, N), float32.
    points : (P, N) float32 array
        Signal at voxels of the brain, evenly spread.
    """

    def __init__(self, series: Series) -> None:
        self.gradients = series.gradients
        self.grid = PlaneGrid.of(series)
        self._turn = io_orientation(series.affine)
        brain = np.argwhere(self.grid.mask)
        self._points = tuple(brain[:: max(len(brain) // N_POINTS, 1)].T)
        n = len(series)
        self.planes = {
            name: np.zeros((*self.grid.plane(name, self.grid.mask).shape, n), np.float32)
            for name in PLANES
        }
        self.points = np.zeros((len(self._points[0]), n), np.float32, order="F")

    @classmethod
    def of(cls, series: Series, n_threads: int = 1) -> Slices:
        """Keep the planes of all volumes."""
        slices = cls(series)
        for _ in parallel_iterate(slices._keep, enumerate(series.volumes()), n_threads=n_threads):
            pass
        return slices

    def watching(self, volumes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass all volumes of the series through, and keep their planes."""
        for index, volume in enumerate(volumes):
            self._keep((index, volume))
            yield volume

    def _keep(self, numbered: tuple[int, np.ndarray]) -> None:
        """Keep the planes of one volume."""
        index, volume = numbered
        turned = apply_orientation(volume, self._turn)
        for name in PLANES:
            self.planes[name][..., index] = self.grid.plane(name, turned)
        self.points[:, index] = turned[self._points]

    def mask(self, plane: str) -> np.ndarray:
        """Cut the mask of the brain."""
        return self.grid.plane(plane, self.grid.mask)

    def sizes(self, plane: str) -> np.ndarray:
        """Edge lengths of the pixels of a plane, mm (2,)."""
        return np.delete(self.grid.sizes, PLANES.index(plane))

    @property
    def means(self) -> np.ndarray:
        """Mean over the brain of each volume, (N,)."""
        return self.points.mean(axis=0, dtype=float)

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """SD over the largest shell, each volume scaled to the same mean: axial, sagittal."""
        shell = max(self.gradients.shells, key=len)
        means = self.means[shell]
        gains = means.mean() / np.where(means > 0, means, np.inf)
        axial, sagittal = (self.planes[name][..., shell] for name in ("axial", "sagittal"))
        return (axial * gains).std(axis=2), (sagittal * gains).std(axis=2)

    def bright(self, axial: np.ndarray, sagittal: np.ndarray) -> float:
        """Return what few voxels of the brain exceed in two slices, or all of them without any."""
        values = np.concatenate([axial[self.mask("axial")], sagittal[self.mask("sagittal")]])
        return float(np.percentile(values if values.size else axial, 97))

    def profile(self) -> np.ndarray:
        """Signal along one line from bottom to top, a column a diffusion-weighted volume."""
        line = self.planes["sagittal"][self.grid.cuts[1]][:, self.gradients.dwis]
        return line / np.maximum(line.mean(axis=0), 1e-6 * max(float(line.max()), 1e-6))

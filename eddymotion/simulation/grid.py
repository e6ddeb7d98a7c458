# SPDX-License-Identifier: Apache-2.0
"""The voxels of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from eddymotion.images.grid import grid_center
from eddymotion.simulation.base import Box
from eddymotion.wording import short_repr


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels of a scan: shape and affine (RAS+ mm)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    __repr__ = short_repr

    @classmethod
    def covering(
        cls,
        phantom: Box,
        voxel_sizes: float | Sequence[float] = 2.0,
        orientation: str = "RAS",
        rotation: np.ndarray | None = None,
    ) -> Grid:
        """Cover a phantom.

        Parameters
        ----------
        phantom : Phantom, or anything with shape and affine
        voxel_sizes : float or three
            mm, along right-left, anterior-posterior, superior-inferior.
        orientation : str
            Where the image axes point, as nibabel's axis codes: ``RAS``, ``LAS``, ``PSL`` …
        rotation : (3, 3) array, optional
            Turns the grid about the phantom's centre: an oblique scan.
        """
        sizes = np.broadcast_to(np.asarray(voxel_sizes, float), 3)
        extent = np.abs(phantom.affine[:3, :3]) @ np.array(phantom.shape)
        shape = np.ceil(extent / sizes).astype(int)
        middle = grid_center(phantom.shape, phantom.affine)
        linear = (np.eye(3) if rotation is None else rotation) @ np.diag(sizes)
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = middle - linear @ ((shape - 1) / 2)
        change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
        turned = affine @ inv_ornt_aff(change, tuple(shape))
        order = np.argsort(change[:, 0])
        x, y, z = (int(shape[axis]) for axis in order)
        return cls((x, y, z), turned)

    def refined(self, factors: Sequence[int], margin: Sequence[int] = (0, 0, 0)) -> Grid:
        """Divide each voxel into `factors` along the axes, after adding `margin` on both sides."""
        shape = np.array(self.shape) + 2 * np.array(margin)
        affine = self.affine.copy()
        first = (np.reciprocal(np.array(factors, float)) - 1) / 2 - np.array(margin)
        affine[:3, 3] += affine[:3, :3] @ first
        affine[:3, :3] /= np.array(factors)
        x, y, z = (shape * np.array(factors)).tolist()
        return Grid((x, y, z), affine)

    def part(self, axis: int, start: int, stop: int) -> Grid:
        """Keep the voxels from `start` up to `stop` along an axis."""
        shape, affine = list(self.shape), self.affine.copy()
        shape[axis] = stop - start
        affine[:3, 3] += affine[:3, axis] * start
        x, y, z = shape
        return Grid((x, y, z), affine)

    @property
    def center(self) -> np.ndarray:
        """The centre of the grid, RAS+ mm."""
        return grid_center(self.shape, self.affine)

    @property
    def voxel_indices(self) -> np.ndarray:
        """Indices (x, y, z) of all voxels, x fastest: (Z * Y * X, 3)."""
        z, y, x = np.indices(self.shape[::-1]).reshape(3, -1)
        return np.stack([x, y, z], axis=1)

# SPDX-License-Identifier: Apache-2.0
"""What makes a head or its scan unusual: a cavity, a slab of slices, a field of view too small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from eddymotion.images.grid import Grid, grid_points
from eddymotion.simulation.base import ContinuousHead, Head
from eddymotion.simulation.synthetic import within

Cavity = Literal["none", "fluid", "empty"]
"""Filled with fluid, or with nothing that gives signal."""

Coverage = Literal["whole", "slab", "cropped"]
"""Of the brain by the field of view: :data:`SLAB_MM` of slices in its middle, or all but its
lowest :data:`CROPPED_MM`."""

CAVITY_RADIUS_MM = 25.0
CAVITY_OFFSET_MM = (22.0, -12.0, 14.0)
"""From the middle of the brain, RAS+."""

FLUID_SIGNAL, FLUID_DIFFUSIVITY = 2.2, 3.0e-3
"""Of the fluid: b=0 signal relative to white matter; mm²/s."""

SLAB_MM, CROPPED_MM = 42.0, 30.0


@dataclass(frozen=True, eq=False)
class CavityHead:
    """A head with a spherical cavity of :data:`CAVITY_RADIUS_MM`, as after a resection.

    Parameters
    ----------
    head : Head
    filled : bool
        With fluid; else it gives no signal.
    """

    head: Head
    filled: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.head.shape

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices → RAS+ mm, (4, 4)."""
        return self.head.affine

    @property
    def white_signal(self) -> float:
        """Mean b=0 signal of white matter."""
        return self.head.white_signal

    @cached_property
    def center(self) -> np.ndarray:
        """Of the cavity, RAS+ mm."""
        return brain_points(self.head).mean(axis=0) + CAVITY_OFFSET_MM

    @cached_property
    def _share(self) -> np.ndarray:
        """Share of the cavity in each voxel of the head's grid."""
        return self.share_at(grid_points(self.shape, self.affine)).reshape(self.shape)

    @cached_property
    def brain(self) -> np.ndarray:
        """Where the brain is, (X, Y, Z) bool."""
        return self.head.brain & (self._share < 0.5)

    def share_at(self, points: np.ndarray) -> np.ndarray:
        """Share of the cavity at points (..., 3)."""
        depth = CAVITY_RADIUS_MM - np.linalg.norm(points - self.center, axis=-1)
        return within(depth).astype(np.float32)

    def signal(self, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal; see :class:`eddymotion.simulation.Head`."""
        return self._blended(self.head.signal(bval, bvec), self._share, bval)

    def _blended(self, signal: np.ndarray, share: np.ndarray, bval: float) -> np.ndarray:
        inside = FLUID_SIGNAL * self.white_signal * np.exp(-bval * FLUID_DIFFUSIVITY)
        return (1 - share) * signal + np.float32(self.filled * inside) * share


@dataclass(frozen=True, eq=False)
class ContinuousCavityHead(CavityHead):
    """As :class:`CavityHead`, in a head that is known at any point."""

    head: ContinuousHead

    def signal_at(self, points: np.ndarray, bval: float, bvec: np.ndarray) -> np.ndarray:
        """Noise-free signal at points (P, 3)."""
        signal = self.head.signal_at(points, bval, bvec)
        return self._blended(signal, self.share_at(points), bval)


def with_cavity(head: Head, cavity: Cavity) -> Head:
    """Put a cavity into a head, or leave it as it is."""
    if cavity == "none":
        return head
    if isinstance(head, ContinuousHead):
        return ContinuousCavityHead(head, cavity == "fluid")
    return CavityHead(head, cavity == "fluid")


def covered(grid: Grid, head: Head, coverage: Coverage) -> Grid:
    """Reduce a field of view to what covers a part of the brain; see :data:`Coverage`."""
    if coverage == "whole":
        return grid
    voxels = apply_affine(np.linalg.inv(grid.affine), brain_points(head))
    least, most = voxels.min(axis=0), voxels.max(axis=0)
    sizes = voxel_sizes(grid.affine)
    if coverage == "slab":
        n = round(SLAB_MM / sizes[2])
        start = int(np.clip(round((least[2] + most[2] - n + 1) / 2), 0, grid.shape[2] - 1))
        return grid.part(2, start, min(start + n, grid.shape[2]))
    axis = int(np.argmax(np.abs(grid.affine[2, :3]) / sizes))
    lost = CROPPED_MM / sizes[axis]
    if grid.affine[2, axis] > 0:
        return grid.part(axis, int(np.ceil(least[axis] + lost)), grid.shape[axis])
    return grid.part(axis, 0, int(np.floor(most[axis] - lost)) + 1)


def brain_points(head: Head) -> np.ndarray:
    """Voxel centres of the brain, (P, 3) RAS+ mm."""
    return apply_affine(head.affine, np.argwhere(head.brain))

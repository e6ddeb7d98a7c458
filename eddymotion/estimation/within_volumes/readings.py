# SPDX-License-Identifier: Apache-2.0
"""What volumes showed when they were last read, and what they show a little later.

Most of the time of a step goes into reading. A volume in which the head was at rest hardly moves
any more, step by step: what it shows then follows from its slopes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from eddymotion.images.stack import StackReading
from eddymotion.images.stack_kernels import N_NODES

NEAR_VOXELS = 0.05
"""A volume that has moved by less, at its points (root mean square), is not read again: over such
a way band-passed volumes are straight within a hundredth."""


@dataclass(eq=False)
class Readings:
    """The last readings of n volumes at V points.

    Parameters
    ----------
    points : (V, 3) array
        In the head's frame, mm.
    n : int
    n_slices : int
    near_mm : float
        Way within which a volume is not read again.
    """

    points: np.ndarray
    n: int
    n_slices: int
    near_mm: float
    values: np.ndarray = field(init=False)
    slopes: np.ndarray = field(init=False)
    weights: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)
    poses: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = self.n, len(self.points)
        self.values = np.empty(shape, np.float32)
        self.slopes = np.empty((3, *shape), np.float32)
        self.weights = np.empty((*shape, N_NODES), np.float32)
        self.first = np.empty(shape, np.int32)
        self.poses = np.full((self.n, self.n_slices, 4, 4), np.nan)
        self.homogeneous = np.column_stack([self.points, np.ones(len(self.points))])

    def keep(self, index: int, poses: np.ndarray, reading: StackReading, factor: object) -> None:
        """Keep a reading of a volume, whose slices had poses (Z, 4, 4); `factor` multiplies it."""
        self.values[index] = reading.values * factor
        self.slopes[:, index] = reading.slopes.T
        self.weights[index], self.first[index] = reading.weights, reading.first
        self.poses[index] = poses

    def shown(self, index: int, poses: np.ndarray) -> np.ndarray | None:
        """Return what a volume shows at poses (Z, 4, 4), (V,); None if it has to be read."""
        if np.array_equal(poses, self.poses[index]):
            return self.values[index].copy()
        if np.ptp(poses, axis=0).any() or not np.isfinite(self.poses[index]).all():
            return None
        change = np.linalg.inv(self.poses[index, 0]) @ poses[0] - np.eye(4)
        away = self.homogeneous @ change[:3].T
        if np.sqrt((away**2).sum(axis=1).mean()) > self.near_mm:
            return None
        moved = np.einsum("vk,kv->v", away.astype(np.float32), self.slopes[:, index])
        return self.values[index] + moved

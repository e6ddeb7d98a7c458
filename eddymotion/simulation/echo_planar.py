# SPDX-License-Identifier: Apache-2.0
"""Echo-planar images that conserve signal: what is displaced adds up where it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.images.grid import Grid, block_means, grid_points
from eddymotion.images.image import Image
from eddymotion.mapping.off_resonance import Readout
from eddymotion.simulation.base import Head
from eddymotion.simulation.sampling import View
from eddymotion.wording import short_repr

PE_FACTOR, OTHER_FACTOR = 8, 2
"""Parts of a voxel along the phase encoding and across."""


@dataclass(frozen=True, eq=False)
class Distortion:
    """What an off-resonance field does to all volumes of a scan.

    Parameters
    ----------
    field : callable
        Pose of the head (head → scanner, (4, 4)) → field in the frame of the head, Hz.
    readout : Readout
        Its direction is an axis of the grid.
    """

    field: Callable[[np.ndarray], Image]
    readout: Readout

    __repr__ = short_repr


def pushed_means(
    head: Head,
    view: View,
    grid: Grid,
    hertz: Image,
    readout: Readout,
    *,
    layers: int = OTHER_FACTOR,
) -> np.ndarray:
    """Means over the voxels of a grid of what is recorded there: (X, Y, Z).

    Parameters
    ----------
    head : Head
    view : View
        Its eddy currents displace, too, along the same axis.
    grid : Grid
    hertz : Image
        The field in the frame of the head.
    readout : Readout
        Its direction is an axis of the grid.
    layers : int
        Parts of a voxel along the third axis, unless that is the phase encoding's.
    """
    to_voxels = np.linalg.inv(grid.affine)[:3, :3]
    axis = int(np.abs(to_voxels @ readout.direction).argmax())
    factors = [OTHER_FACTOR, OTHER_FACTOR, layers]
    factors[axis] = PE_FACTOR
    fine = grid.refined(factors)
    signal = replace(view, eddy=None).sampled(head, fine).T
    shifts = _shifts_of_faces(hertz, readout, view, fine, axis) @ to_voxels[axis]
    recorded = _pushed(np.moveaxis(signal, axis, -1), np.moveaxis(shifts, axis, -1), PE_FACTOR)
    across = [1 if other == axis else factors[other] for other in range(3)]
    return block_means(np.moveaxis(recorded, -1, axis), (across[0], across[1], across[2]))


def _shifts_of_faces(
    hertz: Image, readout: Readout, view: View, fine: Grid, axis: int
) -> np.ndarray:
    """Displacement (mm, last axis RAS+) of the faces between cells: one more there than cells."""
    shape = np.array(fine.shape) + (np.arange(3) == axis)
    affine = fine.affine.copy()
    affine[:3, 3] -= fine.affine[:3, axis] / 2
    shifts = np.empty((*shape, 3), np.float32)
    for x, plane in enumerate(shifts):
        points = grid_points(shape, affine, slab=slice(x, x + 1), axis=0)
        found = np.nan_to_num(hertz.spline.sample(points, view.pose))[:, None] * readout.shift
        if view.eddy is not None:
            found += view.eddy.recorded(view.index, points) - points
        plane[...] = found.reshape(plane.shape)
    return shifts


def _pushed(signal: np.ndarray, shifts: np.ndarray, factor: int) -> np.ndarray:
    """Add up cells (…, N) in voxels of `factor` cells, their faces displaced by voxels (…, N + 1).

    A cell spreads evenly over what its faces enclose, which are less than two voxels. Signal that
    leaves the image is lost.
    """
    n_cells = signal.shape[-1]
    n_lines, n_voxels = signal[..., 0].size, n_cells // factor
    faces = np.arange(n_cells + 1) / factor + shifts.reshape(n_lines, -1)
    low = np.minimum(faces[:, :-1], faces[:, 1:])
    width = np.maximum(np.abs(np.diff(faces, axis=1)), 1e-6)
    first = np.floor(low)
    in_first = np.clip((first + 1 - low) / width, 0, 1)
    mass = signal.reshape(n_lines, -1) / factor
    line = np.arange(n_lines)[:, None] * (n_voxels + 2)
    total = np.zeros(n_lines * (n_voxels + 2))
    for offset, share in ((0, in_first), (1, 1 - in_first)):
        voxel = np.clip(first + offset, -1, n_voxels).astype(int)  # two bins for what is lost
        total += np.bincount((line + voxel + 1).ravel(), (mass * share).ravel(), total.size)
    return total.reshape(n_lines, n_voxels + 2)[:, 1:-1].reshape(*signal.shape[:-1], n_voxels)

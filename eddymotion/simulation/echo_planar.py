# SPDX-License-Identifier: Apache-2.0
"""Echo-planar images that conserve signal: what is displaced adds up where it is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import voxel_sizes

from eddymotion.images.grid import Grid, grid_points
from eddymotion.images.image import Image
from eddymotion.machine.compiling import compiled
from eddymotion.mapping.off_resonance import Readout
from eddymotion.simulation.base import Head
from eddymotion.simulation.sampling import View
from eddymotion.wording import short_repr

CELL_MM = 0.5
"""Largest part of a voxel along the phase encoding; edges of the head are a few times as wide."""

OTHER_FACTOR = 2
"""Parts of a voxel across."""

LEAST_WIDTH = 1e-6
"""To which a cell is squeezed together, voxels."""


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
    factors[axis] = max(math.ceil(voxel_sizes(grid.affine)[axis] / CELL_MM), OTHER_FACTOR)
    fine = grid.refined(factors)
    signal = replace(view, eddy=None).sampled(head, fine).T
    shifts = _shifts_of_faces(hertz, readout, view, fine, axis).T
    recorded = np.zeros(grid.shape, np.float32)
    across = [factor for other, factor in enumerate(factors) if other != axis]
    in_lines = (np.moveaxis(values, axis, -1) for values in (signal, shifts, recorded))
    _push(*in_lines, factors[axis], *across)
    return recorded / np.float32(np.prod(factors))


def _shifts_of_faces(
    hertz: Image, readout: Readout, view: View, fine: Grid, axis: int
) -> np.ndarray:
    """Displacement (cells) of the faces between cells, of which there is one more: (Z, Y, X)."""
    affine, to_cells = fine.affine.copy(), np.linalg.inv(fine.affine)[axis, :3]
    affine[:3, 3] -= affine[:3, axis] / 2
    shape = np.array(fine.shape) + (np.arange(3) == axis)
    shifts = hertz.spline.on_grid(tuple(shape), affine, view.pose)
    shifts *= np.float32(to_cells @ readout.shift)
    if view.eddy is not None:
        against = np.float32(to_cells @ view.eddy.pe)
        for z, plane in enumerate(shifts):
            points = grid_points(shape, affine, order="F", slab=slice(z, z + 1))
            plane -= against * view.eddy.displacement(view.index, points).reshape(plane.shape)
    return shifts


@compiled
def _push(signal, shifts, recorded, along, first_across, second_across):
    """Add up in the voxels what their cells record, of which each voxel has several.

    A cell spreads evenly over what its faces enclose. Signal that leaves the image is lost.

    Parameters
    ----------
    signal : (A, B, N) array
        Of cells, the phase encoding last.
    shifts : (A, B, N + 1) array
        Displacement of their faces, cells.
    recorded : (a, b, n) array
        Sums of voxels, to which is added.
    along, first_across, second_across : int
        Cells a voxel.
    """
    for a in range(signal.shape[0]):
        for b in range(signal.shape[1]):
            for n in range(signal.shape[2]):
                mass = signal[a, b, n]
                if mass == 0:
                    continue
                start, stop = (n + shifts[a, b, n]) / along, (n + 1 + shifts[a, b, n + 1]) / along
                low, width = min(start, stop), max(abs(stop - start), LEAST_WIDTH)
                first = max(int(np.floor(low)), 0)
                last = min(int(np.floor(low + width)), recorded.shape[2] - 1)
                for voxel in range(first, last + 1):
                    inside = min(low + width, voxel + 1) - max(low, voxel)
                    recorded[a // first_across, b // second_across, voxel] += mass * inside / width

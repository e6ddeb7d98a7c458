# SPDX-License-Identifier: Apache-2.0
"""Image grids: where their voxels lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from eddymotion.images.kernels import EDGE
from eddymotion.wording import short_repr

ALL = slice(None)

SLACK = 1e-3
"""Of a voxel, by which a box may miss what it is to cover: rounding."""


def all_points(
    along: Sequence[np.ndarray | Sequence[float]], *, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Return all points whose coordinates are among those `along` each of the axes, (P, 3).

    Parameters
    ----------
    along : three arrays
    order : {"C", "F"}
        Which axis runs fastest: z, as in a C-ordered array (X, Y, Z), or x, as in NIfTI files.
    """
    points = np.stack(np.meshgrid(*along, indexing="ij"))
    return points.reshape(3, -1).T if order == "C" else points.T.reshape(-1, 3)


def transformed(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (P, 3) by a matrix (4, 4), as ``apply_affine`` does in four times the time."""
    columns = matrix[:3, :3] @ points.T
    columns += matrix[:3, 3:]
    return np.ascontiguousarray(columns.T)


def grid_indices(
    shape: Sequence[int], *, order: Literal["C", "F"] = "C", slab: slice = ALL, axis: int = 2
) -> np.ndarray:
    """Return the indices (x, y, z) of all voxels of a grid, (P, 3).

    Parameters
    ----------
    shape : three int
    order : {"C", "F"}
        As of :func:`all_points`.
    slab, axis : slice, int
        What is kept, and along which axis; all voxels if not given.
    """
    along = [np.arange(n) for n in shape[:3]]
    along[axis] = along[axis][slab]
    return all_points(along, order=order)


def grid_points(
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    order: Literal["C", "F"] = "C",
    slab: slice = ALL,
    axis: int = 2,
) -> np.ndarray:
    """Return where an affine puts all voxels of a grid, (P, 3); see :func:`grid_indices`."""
    return apply_affine(affine, grid_indices(shape, order=order, slab=slab, axis=axis))


def grid_center(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return the world coordinates (mm) of the centre of an image grid."""
    return apply_affine(affine, (np.array(shape[:3]) - 1) / 2)


def mask_center(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the world coordinates (mm) of the middle of a mask (X, Y, Z)."""
    return apply_affine(affine, np.argwhere(mask).mean(axis=0))


def grid_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart (mm) two affines put the corners of a grid of that shape."""
    corners = all_points([(0, n - 1) for n in shape[:3]])
    return float(np.linalg.norm(apply_affine(a - b, corners), axis=1).max())


def read_linearly(
    data: np.ndarray, to_data: np.ndarray, shape: Sequence[int], mode: str = "constant"
) -> np.ndarray:
    """Interpolate an array (X, Y, Z) linearly at the voxels of a grid.

    Parameters
    ----------
    data : (X, Y, Z) array
    to_data : (4, 4) array
        Voxel indices of the grid → those of `data`.
    shape : three int
        Of the grid.
    mode : str
        Beyond the edges, as in :func:`scipy.ndimage.map_coordinates`; zero by default.
    """
    from scipy.ndimage import map_coordinates

    return map_coordinates(data, grid_points(shape, to_data).T, order=1, mode=mode).reshape(shape)


def block_means(
    volume: np.ndarray, factors: Sequence[int] | np.ndarray, dtype: type | None = None
) -> np.ndarray:
    """Average blocks of `factors` voxels along the axes, of which the volume has whole ones."""
    kind = np.mean(np.zeros(1, volume.dtype), dtype=dtype).dtype
    total = volume
    for axis, factor in reversed(list(enumerate(factors))):  # many times faster than np.mean
        planes = np.moveaxis(total, axis, 0)
        sums = planes[::factor].astype(kind)
        for k in range(1, factor):
            sums += planes[k::factor]
        total = np.moveaxis(sums, 0, axis)
    return total / kind.type(np.prod(factors))


def inside_shape(voxels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Whether voxel coordinates (P, 3) lie in an image, up to half a voxel outside: (P,)."""
    inside = np.ones(len(voxels), bool)
    for along, n in zip(voxels.T, shape, strict=True):
        inside &= (along >= -EDGE) & (along <= n - 1 + EDGE)
    return inside


def fsl_coordinates(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return RAS+ mm → FSL's scaled voxel coordinates of a grid, (4, 4).

    Voxel indices times voxel sizes, x flipped where the determinant of the affine is positive.
    """
    sizes = voxel_sizes(affine)
    to_fsl = np.diag([*sizes, 1.0])
    if np.linalg.det(affine[:3, :3]) > 0:
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        flip[0, 3] = (shape[0] - 1) * sizes[0]
        to_fsl = flip @ to_fsl
    return to_fsl @ np.linalg.inv(affine)


def sizes_along(affine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the voxel sizes (3,) of another grid along the axes next to those of the first."""
    sizes = np.empty(3)
    sizes[io_orientation(other)[:, 0].astype(int)] = voxel_sizes(other)
    return sizes[io_orientation(affine)[:, 0].astype(int)]


def reoriented(
    data: np.ndarray, affine: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute the axes of an image to be those next to another grid's; no voxel moves.

    Returns
    -------
    data : array
        (X, Y, Z), or with further axes, which stay.
    affine : (4, 4) array
    """
    change = ornt_transform(io_orientation(affine), io_orientation(other))
    return apply_orientation(data, change), affine @ inv_ornt_aff(change, data.shape[:3])


def regridded(
    shape: Sequence[int], affine: np.ndarray, sizes: np.ndarray
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Fill the box of a grid with voxels of other sizes (3,), mm, about the same centre.

    The axes stay; the new box is less than a voxel larger where it cannot be the same.
    """
    own = voxel_sizes(affine)
    x, y, z = np.ceil(np.array(shape[:3]) * own / sizes - SLACK).astype(int).tolist()
    linear = affine[:3, :3] / own * sizes
    middle = grid_center(tuple(shape), affine)
    return (x, y, z), from_matvec(linear, middle - linear @ ((np.array([x, y, z]) - 1) / 2))


class Box(Protocol):
    """A box of voxels: shape and affine."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        ...

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices → RAS+ mm, (4, 4)."""
        ...


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of an image: shape and affine (RAS+ mm)."""

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
        affine = from_matvec(linear, middle - linear @ ((shape - 1) / 2))
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
        return grid_indices(self.shape, order="F")

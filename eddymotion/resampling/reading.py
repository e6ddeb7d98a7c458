# SPDX-License-Identifier: Apache-2.0
"""Where a volume is read for each voxel of the output grid, and the factor of its signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from eddymotion.images.grid import ALL, grid_points, inside_shape, transformed
from eddymotion.images.kernels import EDGE
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.volume import FieldThere, VolumeMapping

SpaceMap = Callable[[np.ndarray], np.ndarray]
"""Points (P, 3) of the output grid → points (P, 3) of the reference frame, both RAS+ mm.

If it has an attribute ``rotation`` (3, 3), its inverse expresses the b-vectors in the output
space. If it has an attribute ``linear`` (4, 4), that matrix is the whole map, and no array of
points is made."""

SLAB_POINTS = 2**15
"""Number of points, about, whose positions are computed at a time. With twice as many, arrays are
allocated anew by the operating system each time, which takes longer than the computation."""

SLABS_OF_MATRIX = 4
"""Factor by which slabs are larger for a purely affine mapping, which needs few arrays."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Where one volume is read for each voxel of the output grid.

    Parameters
    ----------
    shape : three int
        Of the output grid.
    affine : (4, 4) array
        Its voxel indices → the reference frame, RAS+ mm.
    image_affine : (4, 4) array
        Of the volume.
    mapping : VolumeMapping
        Reference → volume.
    points : (Z, Y, X, 3) array, optional
        As in :class:`Resampled`.
    field : FieldOnGrid, optional
        The off-resonance field at the voxels of the grid.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    image_affine: np.ndarray
    mapping: VolumeMapping
    points: np.ndarray | None
    field: FieldOnGrid | None = None

    def thinned(self, every: int) -> Reading:
        """Return the same at one in `every` voxels of the output grid along each axis."""
        x, y, z = (-(-n // every) for n in self.shape)
        some = (slice(None, None, every),) * 3
        return replace(
            self,
            shape=(x, y, z),
            affine=self.affine @ np.diag([every, every, every, 1.0]),
            points=None if self.points is None else self.points[some],
            field=None if self.field is None else self.field.at(some),
        )

    @property
    def is_affine(self) -> bool:
        """Whether the matrix :attr:`voxels` is the whole mapping."""
        return self.mapping.is_rigid and self.points is None

    @property
    def polynomial(self) -> EddyCurrents | None:
        """The eddy-current field, if nothing else adds to :attr:`voxels`."""
        alone = self.points is None and self.mapping.off_resonance is None
        return self.mapping.eddy_currents if alone else None

    @property
    def voxels(self) -> np.ndarray:
        """Voxels of the grid → voxels of the volume, without fields and space: (3, 4)."""
        return (np.linalg.inv(self.image_affine) @ self.mapping.pose @ self.affine)[:3]

    def slabs(
        self, *, compiled: bool = False
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray | float]]:
        """Yield the positions to read, RAS+ mm, and the factor of the signal, slab by slab.

        Parameters
        ----------
        compiled : bool
            Whether the fields are evaluated by compiled kernels.

        Yields
        ------
        slab : slice
            Of the third axis of the grid.
        recorded : (P, 3) array
            x fastest.
        stretch : (P,) array, or 1
        """
        for slab, points, there in self.places():
            if compiled:
                yield slab, *self.mapping.displaced(points, there)
            else:
                yield slab, *self.mapping.displaced_by_definition(points, there)

    def homogeneous_slabs(
        self, image_shape: tuple[int, ...]
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray | float, np.ndarray]]:
        """Yield as :meth:`slabs` does, homogeneous (4, P), and which lie in the image (P,)."""
        if self.is_affine:
            matrix, voxels = self.mapping.pose @ self.affine, self.voxels
            for slab in slabs_of(self.shape, SLABS_OF_MATRIX * SLAB_POINTS):
                inside = inside_image(image_shape, voxels, self.shape, slab)
                yield slab, _mapped_indices(self.shape, matrix, slab), 1.0, inside.T.ravel()
            return
        to_voxels = np.linalg.inv(self.image_affine)
        for slab, recorded, stretch in self.slabs():
            points = np.concatenate([recorded.T, np.ones((1, len(recorded)))])
            inside = inside_shape(transformed(to_voxels, recorded), image_shape)
            yield slab, points, stretch, inside

    def places(self) -> Iterator[tuple[slice, np.ndarray, FieldThere | None]]:
        """Yield where voxels are in the reference frame, slab by slab, and the field there."""
        for slab in slabs_of(self.shape):
            if self.points is None:
                points = grid_points(self.shape, self.affine, order="F", slab=slab)
            else:
                points = self.points[slab].reshape(-1, 3)
            yield slab, points, None if self.field is None else self.field.of_slab(slab)


@dataclass(frozen=True, eq=False)
class FieldOnGrid:
    """An off-resonance field at the voxels of the output grid: the same for all volumes.

    Parameters
    ----------
    hertz : (Z, Y, X) float32 array
    slopes : (Z, Y, X, 3) float32 array
        Hz/mm along RAS+ of the reference frame.
    """

    hertz: np.ndarray
    slopes: np.ndarray

    @classmethod
    def of(
        cls,
        motion: Motion,
        shape: tuple[int, int, int],
        affine: np.ndarray,
        points: np.ndarray | None,
    ) -> FieldOnGrid | None:
        """Evaluate the field of a motion, if it has one."""
        if motion.off_resonance is None:
            return None
        field = motion.off_resonance.field
        if points is None:
            hertz, slopes = field.on_grid_with_gradient(shape, affine)
            slopes = np.ascontiguousarray(slopes.transpose(2, 1, 0, 3))
            return cls(np.ascontiguousarray(hertz.T), slopes)
        hertz, slopes = np.empty(shape[::-1], np.float32), np.empty((*shape[::-1], 3), np.float32)
        for slab in slabs_of(shape):
            values, along = field.hertz_with_gradient(points[slab].reshape(-1, 3))
            hertz[slab] = values.reshape(hertz[slab].shape)
            slopes[slab] = along.reshape(slopes[slab].shape)
        return cls(hertz, slopes)

    def at(self, voxels: tuple[slice, ...]) -> FieldOnGrid:
        """Take some of the voxels, (z, y, x)."""
        return FieldOnGrid(self.hertz[voxels], self.slopes[voxels])

    def of_slab(self, slab: slice) -> tuple[np.ndarray, np.ndarray]:
        """Hertz (P,) and slopes (P, 3) of a slab, x fastest."""
        return self.hertz[slab].ravel(), self.slopes[slab].reshape(-1, 3)


def slabs_of(shape: tuple[int, int, int], n_points: int | None = None) -> Iterator[slice]:
    """Split the third axis of a grid into slabs of about `n_points`, or :data:`SLAB_POINTS`."""
    thickness = max(1, (n_points or SLAB_POINTS) // (shape[0] * shape[1]))
    for start in range(0, shape[2], thickness):
        yield slice(start, min(start + thickness, shape[2]))


def _mapped_indices(shape: tuple[int, int, int], matrix: np.ndarray, slab: slice) -> np.ndarray:
    """Map the voxel indices of a slab by a matrix (4, 4), x fastest: (4, P) float32."""
    k, j, i = np.ogrid[slab, : shape[1], : shape[0]]
    mapped = np.ones((4, len(k), shape[1], shape[0]), np.float32)
    for row, found in zip(matrix[:3], mapped, strict=False):
        np.add(row[0] * i + row[1] * j, row[2] * k + row[3], out=found, casting="same_kind")
    return mapped.reshape(4, -1)


def mapped_grid(shape: tuple[int, int, int], affine: np.ndarray, space: SpaceMap) -> np.ndarray:
    """Map all voxels of a grid by `space`: (Z, Y, X, 3) float32."""
    points = np.empty((*shape[::-1], 3), np.float32)
    for slab in slabs_of(shape):
        mapped = space(grid_points(shape, affine, order="F", slab=slab))
        points[slab] = mapped.reshape(points[slab].shape)
    return points


def inside_image(
    image_shape: tuple[int, ...],
    mapping: np.ndarray,
    shape: tuple[int, int, int],
    slab: slice = ALL,
) -> np.ndarray:
    """Where the mapped voxels of a slab of a grid lie within an image, or half a voxel outside."""
    k, j, i = np.ix_(np.arange(shape[2])[slab], np.arange(shape[1]), np.arange(shape[0]))
    inside = np.ones((k.size, *shape[1::-1]), bool)
    for row, n in zip(mapping, image_shape, strict=True):
        position = row[0] * i + row[1] * j + (row[2] * k + row[3])
        inside &= (position >= -EDGE) & (position <= n - 1 + EDGE)
    return inside.T

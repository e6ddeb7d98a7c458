# SPDX-License-Identifier: Apache-2.0
"""Resampling the original volumes into one frame, with a single interpolation.

Each voxel of the output grid is mapped to a point of the reference frame (by a :data:`SpaceMap` if
the grid lies in another space), by the pose to the scanner, and by the fields to the position at
which it was recorded. There the volume is read once: cubic B-spline, volume by volume, in float32,
times the stretch of the field at the scanner position, since an echo-planar image conserves
signal.

If the head moved within a volume, the slices do not form an image of the head on a grid. Such a
volume is read slice by slice, each at its own pose, whatever engine reads the others: splines in
the planes, kriging across them (:mod:`eddymotion.images.stack`). That is a single interpolation as
well. Kriging fills gaps that the head left between slices from the slices around them; where none
is near, the volume as it was recorded is read at the pose of the nearest slice. Predictions can
take the place of such values (:mod:`eddymotion.estimation.replacement`). The volume has one
b-vector, rotated by its mean pose: slices differ from it by as much as the head turned within the
volume.

Positions up to half a voxel outside the outermost voxel centres belong to the image (mirrored
there); beyond that it is zero. So volumes that lie at the edge lose no slice to rounding. A cubic
kernel has negative lobes and can undershoot beside bright edges; if the series has no negative
values, the resampled one is clipped at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.series import DWI, Series
from eddymotion.errors import EddymotionError, check_kind
from eddymotion.images.grid import ALL, Box, grid_points, inside_shape, transformed
from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import EDGE, kernel_order, sample_grid, spline_coefficients
from eddymotion.images.stack import SliceStack
from eddymotion.machine.parallel import Progress, parallel_iterate, silent
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.field_kernels import sample_grid_through_field
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.volume import FieldThere, VolumeMapping
from eddymotion.wording import shown

if TYPE_CHECKING:
    from nitransforms.base import TransformBase

Engine = Literal["nitransforms", "fast"]
"""``nitransforms``: the reference. ``fast``: the compiled kernel, equal to it within rounding."""

SpaceMap = Callable[[np.ndarray], np.ndarray]
"""Points (P, 3) of the output grid → points (P, 3) of the reference frame, both RAS+ mm.

If it has an attribute ``rotation`` (3, 3), its inverse expresses the b-vectors in the output
space. If it has an attribute ``linear`` (4, 4), that matrix is the whole map, and no array of
points is made."""

SLAB_POINTS = 2**15
"""Positions are computed for about so many points at a time. With twice as many, the arrays are
allocated anew by the operating system each time, which takes longer than the computation."""

SLABS_OF_MATRIX = 4
"""Slabs are so many times as large for a purely affine mapping, which needs few arrays."""


@overload
def resample(dwi: DWI, motion: Motion, **options: Any) -> DWI: ...
@overload
def resample(dwi: Sequence[DWI], motion: Sequence[Motion], **options: Any) -> list[DWI]: ...
def resample(  # type: ignore[misc]  # options by name
    dwi: DWI | Sequence[DWI],
    motion: Motion | Sequence[Motion],
    *,
    engine: Engine = "nitransforms",
    grid: tuple[tuple[int, int, int], np.ndarray] | None = None,
    space: SpaceMap | None = None,
    n_threads: int = 1,
    progress: Progress = silent,
) -> DWI | list[DWI]:
    """Bring all volumes into the reference frame and rotate the b-vectors with them.

    Parameters
    ----------
    dwi : DWI or sequence of DWI
        The original series; runs that belong together.
    motion : Motion or sequence of Motion
        Reference → volume, with eddy-current and off-resonance fields if it has them.
    engine : {"nitransforms", "fast"}
        Who interpolates.
    grid : (shape, affine), optional
        The output grid; that of `dwi`, or of the first run, when not given.
    space : callable, optional
        Maps points of the output grid to the reference frame; the identity when not given. A map
        that is not linear is evaluated once, and three float32 volumes of the output grid hold the
        result.
    n_threads : int
        Volumes at a time. Each needs two float64 volumes and up to 70 MB with NiTransforms, two
        float32 volumes otherwise.
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    DWI, or list of DWI
        float32, volumes in their original order.
    """
    if isinstance(dwi, list | tuple):
        if not isinstance(motion, list | tuple) or len(motion) != len(dwi):
            raise EddymotionError(
                f"resample: {len(dwi)} runs, expected as many motions, one a run, from "
                "estimate_motion"
            )
        grid = grid or (dwi[0].shape, dwi[0].affine)
        return [
            resample(run, own, engine=engine, grid=grid, space=space, n_threads=n_threads,
                     progress=progress)
            for run, own in zip(dwi, motion, strict=True)
        ]  # fmt: skip
    check_kind(dwi, DWI, "resample")
    check_kind(motion, Motion, "resample")
    assert isinstance(dwi, DWI)
    assert isinstance(motion, Motion)
    series = Resampled.of(dwi, motion, engine=engine, grid=grid, space=space, n_threads=n_threads)
    signal = np.empty((*series.shape, len(dwi)), np.float32, order="F")
    for index, volume in enumerate(progress(series.volumes(), "resampling", len(dwi))):
        signal[..., index] = volume
    return replace(
        dwi, signal=signal, affine=series.affine, acquisition=series.acquisition, mask=series.mask
    )


@dataclass(frozen=True, eq=False, repr=False)
class Resampled(Series):
    """A series in the reference frame, whose volumes are resampled as they are asked for.

    Parameters
    ----------
    original : DWI
    motion : Motion
        Reference → volume.
    engine : {"nitransforms", "fast"}
    affine : (4, 4) array
    acquisition : Acquisition
        Its gradients are rotated with the motion.
    mask : (X, Y, Z) bool array
        On the new grid.
    to_reference : (4, 4) array
        Voxel indices of the new grid → the reference frame, RAS+ mm.
    points : (Z, Y, X, 3) float32 array, optional
        Where the voxels of the grid lie in the reference frame, RAS+ mm, if the map is not linear.
    n_threads : int
        As in :func:`resample`.
    source
        That of `original`.
    """

    original: DWI
    motion: Motion
    engine: Engine
    affine: np.ndarray
    acquisition: Acquisition
    mask: np.ndarray
    to_reference: np.ndarray
    points: np.ndarray | None = None
    n_threads: int = 1
    source: Path | None = None

    @classmethod
    def of(
        cls,
        dwi: DWI,
        motion: Motion,
        *,
        engine: Engine = "nitransforms",
        grid: tuple[tuple[int, int, int], np.ndarray] | None = None,
        space: SpaceMap | None = None,
        n_threads: int = 1,
    ) -> Resampled:
        """Prepare to read each volume once, at the poses of the head; as :func:`resample`."""
        motion.check_length(len(dwi), "resample")
        if engine not in _INTERPOLATE:
            raise EddymotionError(
                f"resample: the engine {shown(engine)} is unknown; use {' or '.join(_INTERPOLATE)}"
            )
        shape, affine = grid or (dwi.shape, dwi.affine)
        linear = np.eye(4) if space is None else getattr(space, "linear", None)
        points = _mapped_grid(shape, affine, space) if linear is None and space else None
        to_reference = affine if linear is None else linear @ affine
        in_place = grid is None and space is None
        rotation = getattr(space, "rotation", np.eye(3))
        turned = dwi.gradients.rotated(motion.rotations @ rotation)
        return cls(
            dwi,
            motion,
            engine,
            affine,
            replace(dwi.acquisition, gradients=turned),
            dwi.mask
            if in_place
            else mask_on_grid(Image(dwi.mask, dwi.affine), shape, to_reference, points),
            to_reference,
            points,
            n_threads,
            dwi.source,
        )

    def volumes(self) -> Iterator[np.ndarray]:
        """Resample the volumes one after the other, (X, Y, Z) float32 each."""
        dwi = self.original
        floor = 0.0 if all(volume.min() >= 0 for volume in dwi.volumes()) else -np.inf
        interpolate, where = _INTERPOLATE[self.engine], self._reading()

        def one_volume(index: int) -> np.ndarray:
            reading = where(index)
            read = interpolate if reading.mapping.slices is None else _slice_by_slice
            resampled = read(dwi.volume(index).data, reading)
            return np.maximum(resampled, floor, out=resampled)

        return parallel_iterate(one_volume, range(len(dwi)), n_threads=self.n_threads)

    def _reading(self) -> Callable[[int], _Reading]:
        """Return what tells, for the index of a volume, where that is read."""
        field = _FieldOnGrid.of(self.motion, self.shape, self.to_reference, self.points)

        def of_volume(index: int) -> _Reading:
            mapping, image_affine = self.motion.mapping(index).effective, self.original.affine
            return _Reading(
                self.shape, self.to_reference, image_affine, mapping, self.points, field
            )

        return of_volume

    @property
    def kernel_agrees(self) -> bool:
        """Whether both engines agree on the volume that moved most, its field included.

        Compared at every other voxel along each axis.
        """
        index = _most_displaced(self.original, self.motion)
        volume, where = self.original.volume(index).data, self._reading()(index).thinned(2)
        where = replace(where, mapping=replace(where.mapping, slices=None))
        difference = np.abs(_with_kernel(volume, where) - _with_nitransforms(volume, where))
        return bool(difference.max() <= AGREEMENT * np.abs(volume).max())


@dataclass(frozen=True, eq=False)
class _Reading:
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
    field : _FieldOnGrid, optional
        The off-resonance field at the voxels of the grid.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    image_affine: np.ndarray
    mapping: VolumeMapping
    points: np.ndarray | None = None
    field: _FieldOnGrid | None = None

    def thinned(self, every: int) -> _Reading:
        """Return the same at every so many-th voxel of the output grid along each axis."""
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
        return voxel_mapping(self.image_affine, self.mapping.pose, self.affine)

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
            for slab in _slabs(self.shape, SLABS_OF_MATRIX * SLAB_POINTS):
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
        for slab in _slabs(self.shape):
            if self.points is None:
                points = grid_points(self.shape, self.affine, order="F", slab=slab)
            else:
                points = self.points[slab].reshape(-1, 3)
            yield slab, points, None if self.field is None else self.field.of_slab(slab)


@dataclass(frozen=True, eq=False)
class _FieldOnGrid:
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
    ) -> _FieldOnGrid | None:
        """Evaluate the field of a motion, if it has one."""
        if motion.off_resonance is None:
            return None
        field = motion.off_resonance.field
        if points is None:
            hertz, slopes = field.on_grid_with_gradient(shape, affine)
            slopes = np.ascontiguousarray(slopes.transpose(2, 1, 0, 3))
            return cls(np.ascontiguousarray(hertz.T), slopes)
        hertz, slopes = np.empty(shape[::-1], np.float32), np.empty((*shape[::-1], 3), np.float32)
        for slab in _slabs(shape):
            values, along = field.hertz_with_gradient(points[slab].reshape(-1, 3))
            hertz[slab] = values.reshape(hertz[slab].shape)
            slopes[slab] = along.reshape(slopes[slab].shape)
        return cls(hertz, slopes)

    def at(self, voxels: tuple[slice, ...]) -> _FieldOnGrid:
        """Take some of the voxels, (z, y, x)."""
        return _FieldOnGrid(self.hertz[voxels], self.slopes[voxels])

    def of_slab(self, slab: slice) -> tuple[np.ndarray, np.ndarray]:
        """Hertz (P,) and slopes (P, 3) of a slab, x fastest."""
        return self.hertz[slab].ravel(), self.slopes[slab].reshape(-1, 3)


def _slabs(shape: tuple[int, int, int], n_points: int | None = None) -> Iterator[slice]:
    """Split the third axis of a grid into slabs of about so many points: :data:`SLAB_POINTS`."""
    thickness = max(1, (n_points or SLAB_POINTS) // (shape[0] * shape[1]))
    for start in range(0, shape[2], thickness):
        yield slice(start, min(start + thickness, shape[2]))


def _mapped_grid(shape: tuple[int, int, int], affine: np.ndarray, space: SpaceMap) -> np.ndarray:
    """Map all voxels of a grid by `space`: (Z, Y, X, 3) float32."""
    points = np.empty((*shape[::-1], 3), np.float32)
    for slab in _slabs(shape):
        mapped = space(grid_points(shape, affine, order="F", slab=slab))
        points[slab] = mapped.reshape(points[slab].shape)
    return points


def _with_nitransforms(volume: np.ndarray, where: _Reading) -> np.ndarray:
    """Filter the volume once, and let NiTransforms interpolate slab by slab, to save memory.

    The volume is turned to (z, y, x), the order of files, so that successive voxels lie side by
    side in memory: that takes a quarter off the time.
    """
    from nitransforms.resampling import apply
    from scipy.ndimage import spline_filter

    filtered = spline_filter(volume.T, order=3, output=np.float64, mode="mirror")
    moving = nib.spatialimages.SpatialImage(filtered, where.image_affine[:, [2, 1, 0, 3]])
    resampled = np.empty(where.shape[::-1], np.float32)
    for slab, points, stretch, inside in where.homogeneous_slabs(volume.shape):
        read = apply(_to_points(points), moving, order=3, mode="mirror", prefilter=False)
        read *= stretch
        read[~inside] = 0.0
        resampled[slab] = read.reshape(resampled[slab].shape)
    return resampled.T


def _mapped_indices(shape: tuple[int, int, int], matrix: np.ndarray, slab: slice) -> np.ndarray:
    """Map the voxel indices of a slab by a matrix (4, 4), x fastest: (4, P) float32."""
    k, j, i = np.ogrid[slab, : shape[1], : shape[0]]
    mapped = np.ones((4, len(k), shape[1], shape[0]), np.float32)
    for row, found in zip(matrix[:3], mapped, strict=False):
        np.add(row[0] * i + row[1] * j, row[2] * k + row[3], out=found, casting="same_kind")
    return mapped.reshape(4, -1)


def _to_points(points: np.ndarray) -> TransformBase:
    """Make a NiTransforms transform onto irregular points, in homogeneous coordinates (4, P).

    Given a grid, NiTransforms would compute the coordinates of its voxels for each volume, and
    copy them to make them homogeneous, which takes an eighth of the time of a volume.
    ``DenseFieldTransform`` would look positions up on its grid, and interpolate between them.
    """
    points_type, transform_type = _types_of_points()
    transform = transform_type()
    transform._reference = points_type(points)
    return transform


@cache
def _types_of_points() -> tuple[type[Any], type[TransformBase]]:
    """Derive points, and a transform that leaves them where they are, from NiTransforms."""
    from nitransforms.base import SampledSpatialData, TransformBase

    class Points(SampledSpatialData):
        def __init__(self, points: np.ndarray) -> None:
            self._coords, self._ndim, self._npoints, self._shape = points.T, 3, len(points.T), None

    class InPlace(TransformBase):
        ndim = 3

    return Points, InPlace


def _with_kernel(volume: np.ndarray, where: _Reading) -> np.ndarray:
    coefficients = spline_coefficients(np.ascontiguousarray(volume.T))
    resampled = np.empty(where.shape[::-1], np.float32)
    if where.is_affine:
        sample_grid(coefficients, kernel_order(where.voxels), 0.0, resampled)
    elif where.polynomial is not None:
        _through_field(coefficients, where, where.polynomial, resampled)
    else:
        spline = Spline(coefficients, where.image_affine)
        for slab, recorded, stretch in where.slabs(compiled=True):
            read = np.nan_to_num(spline.sample(recorded), copy=False) * stretch
            resampled[slab] = read.reshape(resampled[slab].shape)
    return resampled.T


def _through_field(
    coefficients: np.ndarray, where: _Reading, fields: EddyCurrents, resampled: np.ndarray
) -> None:
    """Fill `resampled` with the kernel that evaluates the field on the way."""
    units = fields.units_of(where.mapping.pose @ where.affine)
    to_voxels = np.linalg.inv(where.image_affine)[:3, :3]
    displacement, stretch = fields.polynomials(0)
    sample_grid_through_field(
        coefficients,
        kernel_order(where.voxels),
        np.ascontiguousarray(units[:, [2, 1, 0, 3]]),
        displacement,
        np.ascontiguousarray((to_voxels @ -fields.pe)[::-1]),
        stretch,
        resampled,
    )


def _slice_by_slice(volume: np.ndarray, where: _Reading) -> np.ndarray:
    """Read each slice at its own pose."""
    image, mapping = Image(volume, where.image_affine), where.mapping
    assert mapping.slices is not None
    stack = SliceStack.of(image, mapping.slices.axis)
    resampled = np.empty(where.shape[::-1], np.float32)
    for slab, points, there in where.places():
        read = mapping.rebuild(image, points, there, stack)
        resampled[slab] = np.nan_to_num(read, copy=False).reshape(resampled[slab].shape)
    return resampled.T


_INTERPOLATE: dict[Engine, Callable[[np.ndarray, _Reading], np.ndarray]] = {
    "nitransforms": _with_nitransforms,
    "fast": _with_kernel,
}


AGREEMENT = 1e-3
"""Largest difference of the engines that is accepted, relative to the maximum of a volume."""


def _most_displaced(dwi: DWI, motion: Motion) -> int:
    """Find the volume in which the corners and middles of the image lie farthest away."""
    sides = [(0, (n - 1) / 2, n - 1) for n in dwi.shape]
    points = apply_affine(dwi.affine, np.array(list(product(*sides))))
    moved = [((motion.recorded(i, points) - points) ** 2).sum() for i in range(len(motion))]
    return int(np.argmax(moved))


def voxel_mapping(
    affine: np.ndarray, matrix: np.ndarray, grid_affine: np.ndarray | None = None
) -> np.ndarray:
    """Voxels of the output grid → voxels of the original volume, (3, 4)."""
    return (np.linalg.inv(affine) @ matrix @ (affine if grid_affine is None else grid_affine))[:3]


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


def covered_mask(brain: Image, motion: Motion, recorded: Box) -> np.ndarray:
    """Return the part of the brain that lies inside the image in every volume.

    Where the head has moved out of the field of view there is no signal to compare. If that is
    true of more than half of the brain in some volume, the whole mask is returned: one volume
    must not decide for all.

    Parameters
    ----------
    brain : Image
        A mask of the reference, bool, on any grid.
    motion : Motion
        Reference → volume.
    recorded : Box
        The grid of the original volumes.
    """
    voxels = np.argwhere(brain.data)
    points, to_volume = apply_affine(brain.affine, voxels), np.linalg.inv(recorded.affine)
    covered = np.ones(len(voxels), bool)
    for volume in range(len(motion)):
        there = apply_affine(to_volume, motion.recorded(volume, points))
        covered &= inside_shape(there, recorded.shape)
    if covered.sum() < len(voxels) / 2:
        return brain.data
    mask = np.zeros(brain.data.shape, bool)
    mask[tuple(voxels[covered].T)] = True
    return mask


def mask_on_grid(
    mask: Image, shape: tuple[int, int, int], affine: np.ndarray, points: np.ndarray | None = None
) -> np.ndarray:
    """Read a mask on another grid, (X, Y, Z) bool.

    Parameters
    ----------
    mask : Image
        Bool.
    shape : three int
        Of the grid.
    affine : (4, 4) array
        Its voxel indices → the points of the mask, RAS+ mm.
    points : (Z, Y, X, 3) array, optional
        Where its voxels lie, if no matrix tells.
    """
    where = _Reading(shape, affine, mask.affine, VolumeMapping(np.eye(4)), points)
    found = _with_kernel(mask.data.astype(np.float32, order="F"), where) > 0.5
    if not found.any():
        raise EddymotionError(
            "output space: the given grid does not overlap the brain; "
            "give an image in the world coordinates of the series"
        )
    return found

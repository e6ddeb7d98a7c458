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
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, overload

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.series import DWI, Series
from eddymotion.errors import EddymotionError, check_kind
from eddymotion.images.image import Image
from eddymotion.machine.parallel import Progress, parallel_iterate, silent
from eddymotion.mapping.motion import Motion
from eddymotion.resampling.engines import (
    INTERPOLATE,
    Engine,
    slice_by_slice,
    with_kernel,
    with_nitransforms,
)
from eddymotion.resampling.masks import mask_on_grid
from eddymotion.resampling.reading import FieldOnGrid, Reading, SpaceMap, mapped_grid
from eddymotion.wording import shown

__all__ = ["Engine", "Resampled", "SpaceMap", "resample"]

AGREEMENT = 1e-3
"""Largest difference of the engines that is accepted, relative to the maximum of a volume."""


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

    Raises
    ------
    EddymotionError
        If there are not as many motions as runs, or transforms as volumes.
    """
    if isinstance(dwi, list | tuple):
        if not isinstance(motion, list | tuple) or len(motion) != len(dwi):
            raise EddymotionError(
                f"resample: {len(dwi)} runs, expected as many motions, one per run, from "
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
    points: np.ndarray | None
    n_threads: int
    source: Path | None

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
        if engine not in INTERPOLATE:
            raise EddymotionError(
                f"resample: the engine {shown(engine)} is unknown; use {' or '.join(INTERPOLATE)}"
            )
        shape, affine = grid or (dwi.shape, dwi.affine)
        linear = np.eye(4) if space is None else getattr(space, "linear", None)
        points = mapped_grid(shape, affine, space) if linear is None and space else None
        to_reference = affine if linear is None else linear @ affine
        mask = dwi.mask
        if grid is not None or space is not None:
            mask = mask_on_grid(Image(mask, dwi.affine), shape, to_reference, points)
        rotation = getattr(space, "rotation", np.eye(3))
        turned = dwi.gradients.rotated(motion.rotations @ rotation)
        return cls(
            dwi,
            motion,
            engine,
            affine,
            replace(dwi.acquisition, gradients=turned),
            mask,
            to_reference,
            points,
            n_threads,
            dwi.source,
        )

    def volumes(self) -> Iterator[np.ndarray]:
        """Resample the volumes one after the other, (X, Y, Z) float32 each."""
        dwi = self.original
        floor = 0.0 if all(volume.min() >= 0 for volume in dwi.volumes()) else -np.inf
        interpolate, where = INTERPOLATE[self.engine], self._reading()

        def one_volume(index: int) -> np.ndarray:
            reading = where(index)
            read = interpolate if reading.mapping.slices is None else slice_by_slice
            resampled = read(dwi.volume(index).data, reading)
            return np.maximum(resampled, floor, out=resampled)

        return parallel_iterate(one_volume, range(len(dwi)), n_threads=self.n_threads)

    @cached_property
    def field(self) -> FieldOnGrid | None:
        """The off-resonance field at the voxels of the grid."""
        return FieldOnGrid.of(self.motion, self.shape, self.to_reference, self.points)

    def _reading(self) -> Callable[[int], Reading]:
        """Return a function of the index of a volume: where the volume is read."""
        field = self.field

        def of_volume(index: int) -> Reading:
            mapping, image_affine = self.motion.mapping(index).effective, self.original.affine
            return Reading(
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
        difference = np.abs(with_kernel(volume, where) - with_nitransforms(volume, where))
        return bool(difference.max() <= AGREEMENT * np.abs(volume).max())


def _most_displaced(dwi: DWI, motion: Motion) -> int:
    """Find the volume in which the corners and middles of the image lie farthest away."""
    sides = [(0, (n - 1) / 2, n - 1) for n in dwi.shape]
    points = apply_affine(dwi.affine, np.array(list(product(*sides))))
    moved = [((motion.recorded(i, points) - points) ** 2).sum() for i in range(len(motion))]
    return int(np.argmax(moved))

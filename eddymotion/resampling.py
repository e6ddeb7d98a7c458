"""One interpolation of the original data.

Cubic B-spline, volume by volume, in float32. Positions up to half a voxel outside the outermost
voxel centres belong to the image (mirrored there), beyond it is zero: volumes that lie at the
edge lose no slice to rounding. A cubic kernel has negative lobes and can undershoot beside bright
edges; where the series has no negative values, the resampled one is clipped at zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from eddymotion.dataset import DWI, Series
from eddymotion.errors import EddymotionError
from eddymotion.geometry import Motion, rms_displacement
from eddymotion.gradients import Gradients
from eddymotion.kernels import EDGE, kernel_order, sample_grid, spline_coefficients
from eddymotion.parallel import Progress, parallel_iterate, silent

Engine = Literal["nitransforms", "fast"]
"""``nitransforms``: the reference. ``fast``: the compiled kernel, equal to it within rounding."""


def resample(
    dwi: DWI,
    motion: Motion,
    *,
    engine: Engine = "nitransforms",
    grid: tuple[tuple[int, int, int], np.ndarray] | None = None,
    n_threads: int = 1,
    progress: Progress = silent,
) -> DWI:
    """Bring all volumes into the reference frame and rotate the b-vectors with them.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        Reference → volume.
    engine : {"nitransforms", "fast"}
        Who interpolates.
    grid : (shape, affine), optional
        The output grid; that of `dwi` when not given.
    n_threads : int
        Volumes at a time. Each needs about ten float64 volumes with NiTransforms, two float32
        volumes otherwise.
    progress : callable
        See :class:`~eddymotion.parallel.Progress`.

    Returns
    -------
    DWI
        float32, volumes in their original order.
    """
    series = Resampled.of(dwi, motion, engine=engine, grid=grid, n_threads=n_threads)
    signal = np.empty((*series.shape, len(dwi)), np.float32, order="F")
    for index, volume in enumerate(progress(series.volumes(), "resampling", len(dwi))):
        signal[..., index] = volume
    return replace(
        dwi, signal=signal, affine=series.affine, gradients=series.gradients, mask=series.mask
    )


@dataclass(frozen=True, eq=False, repr=False)
class Resampled(Series):
    """A series in the reference frame, of which few volumes exist at a time.

    Parameters
    ----------
    original : DWI
    motion : Motion
        Reference → volume.
    engine : {"nitransforms", "fast"}
    affine : (4, 4) array
    gradients : Gradients
        Rotated with the motion.
    mask : (X, Y, Z) bool array
        On the new grid.
    n_threads : int
        As in :func:`resample`.
    source, repetition_time
        As those of `original`.
    """

    original: DWI
    motion: Motion
    engine: Engine
    affine: np.ndarray
    gradients: Gradients
    mask: np.ndarray
    n_threads: int = 1
    source: Path | None = None
    repetition_time: float | None = None

    @classmethod
    def of(
        cls,
        dwi: DWI,
        motion: Motion,
        *,
        engine: Engine = "nitransforms",
        grid: tuple[tuple[int, int, int], np.ndarray] | None = None,
        n_threads: int = 1,
    ) -> Resampled:
        """Prepare what :func:`resample` does, with the same parameters."""
        if len(motion) != len(dwi):
            raise EddymotionError(
                f"resample: {len(motion)} transforms for {len(dwi)} volumes; expected one a volume"
            )
        shape, affine = grid or (dwi.shape, dwi.affine)
        return cls(
            dwi,
            motion,
            engine,
            affine,
            dwi.gradients.rotated(motion.rotations),
            dwi.mask if grid is None else _mask_on_grid(dwi, shape, affine),
            n_threads,
            dwi.source,
            dwi.repetition_time,
        )

    def volumes(self) -> Iterator[np.ndarray]:
        """Resample the volumes one after the other, (X, Y, Z) float32 each."""
        dwi = self.original
        floor = 0.0 if all(volume.min() >= 0 for volume in dwi.volumes()) else -np.inf
        interpolate = {"nitransforms": _with_nitransforms, "fast": _with_kernel}[self.engine]

        def one_volume(index: int) -> np.ndarray:
            volume, pose = dwi.volume(index).data, self.motion[index]
            resampled = interpolate(volume, dwi.affine, pose, self.shape, self.affine)
            return np.maximum(resampled, floor, out=resampled)

        return parallel_iterate(one_volume, range(len(dwi)), n_threads=self.n_threads)


def _with_nitransforms(
    volume: np.ndarray,
    affine: np.ndarray,
    matrix: np.ndarray,
    shape: tuple[int, int, int],
    grid_affine: np.ndarray,
) -> np.ndarray:
    from nitransforms.linear import Affine
    from nitransforms.resampling import apply

    reference = nib.Nifti1Image(np.empty(shape, np.uint8), grid_affine)
    moving = nib.Nifti1Image(volume, affine)
    resampled = apply(Affine(matrix, reference=reference), moving, order=3, mode="mirror")
    data = np.asarray(resampled.dataobj, dtype=np.float32).reshape(shape)
    data[~inside_image(volume.shape, voxel_mapping(affine, matrix, grid_affine), shape)] = 0.0
    return data


def _with_kernel(
    volume: np.ndarray,
    affine: np.ndarray,
    matrix: np.ndarray,
    shape: tuple[int, int, int],
    grid_affine: np.ndarray,
) -> np.ndarray:
    mapping = voxel_mapping(affine, matrix, grid_affine)
    resampled = np.empty(shape[::-1], np.float32)
    coefficients = spline_coefficients(np.ascontiguousarray(volume.T))
    sample_grid(coefficients, kernel_order(mapping), 0.0, resampled)
    return resampled.T


def kernel_agrees(dwi: DWI, motion: Motion, tolerance: float = 1e-3) -> bool:
    """Compare both engines on the volume that moved most.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
    tolerance : float
        Largest difference accepted, relative to the volume's maximum.
    """
    moved = rms_displacement(motion.matrices, np.eye(4), dwi.center)
    volume = int(np.argmax(moved))
    arguments = (dwi.volume(volume).data, dwi.affine, motion[volume], dwi.shape, dwi.affine)
    difference = np.abs(_with_kernel(*arguments) - _with_nitransforms(*arguments))
    return bool(difference.max() <= tolerance * np.abs(arguments[0]).max())


def voxel_mapping(
    affine: np.ndarray, matrix: np.ndarray, grid_affine: np.ndarray | None = None
) -> np.ndarray:
    """Voxels of the output grid → voxels of the original volume, (3, 4)."""
    return (np.linalg.inv(affine) @ matrix @ (affine if grid_affine is None else grid_affine))[:3]


def inside_image(
    image_shape: tuple[int, ...], mapping: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Where the mapped voxels of a grid lie within an image, up to half a voxel outside."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = np.ones(shape, bool)
    for row, n in zip(mapping, image_shape, strict=True):
        position = row[0] * i + row[1] * j + row[2] * k + row[3]
        inside &= (position >= -EDGE) & (position <= n - 1 + EDGE)
    return inside


def covered_mask(dwi: DWI, motion: Motion) -> np.ndarray:
    """Return the part of the brain that lies inside the image in every volume.

    Where the head has moved out of the field of view there is no signal to compare. If that is
    true of more than half of the brain in some volume, the whole mask is returned: one volume
    must not decide for all.
    """
    mask = dwi.mask.copy()
    for matrix in motion.matrices:
        mask &= inside_image(dwi.shape, voxel_mapping(dwi.affine, matrix), dwi.shape)
    return mask if mask.sum() >= dwi.mask.sum() / 2 else dwi.mask


def _mask_on_grid(dwi: DWI, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    resampled = _with_kernel(
        dwi.mask.astype(np.float32, order="F"), dwi.affine, np.eye(4), shape, affine
    )
    mask = resampled > 0.5
    if not mask.any():
        raise EddymotionError(
            "output space: the given grid does not overlap the brain; "
            "give an image in the world coordinates of the series"
        )
    return mask

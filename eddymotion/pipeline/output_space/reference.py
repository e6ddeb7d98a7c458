# SPDX-License-Identifier: Apache-2.0
"""What is registered of a series: its mean b=0, or its fractional anisotropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.data.gradients import reference_volumes
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.mapping.motion import Motion
from eddymotion.models.tensor import MIN_SIGNAL_FRACTION, design_matrix
from eddymotion.wording import short_repr

BRAIN_MARGIN_MM = 6.0
"""Around the brain mask: its edge helps, the scalp of an echo-planar image misleads."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What is registered of a series.

    Parameters
    ----------
    image : Image
        In the reference frame.
    brain : (X, Y, Z) bool array
        On its grid.
    """

    image: Image
    brain: np.ndarray

    __repr__ = short_repr

    @property
    def near_brain(self) -> np.ndarray:
        """The brain, and :data:`BRAIN_MARGIN_MM` around it."""
        return widened(self.brain, self.image.voxel_sizes)

    @property
    def points(self) -> np.ndarray:
        """Voxels of the brain, RAS+ mm: (P, 3)."""
        return apply_affine(self.image.affine, np.argwhere(self.brain))


def widened(mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Add :data:`BRAIN_MARGIN_MM` to a mask of voxels of some sizes (3,), mm."""
    return scipy.ndimage.binary_dilation(
        mask, iterations=int(np.ceil(BRAIN_MARGIN_MM / sizes.min()))
    )


def reference_image(dwi: DWI, motion: Motion, contrast: str = "dwiref") -> Image:
    """Return the mean b=0 or the FA of a series in its reference frame, volume by volume.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        Reference → volume.
    contrast : {"dwiref", "fa"}

    Returns
    -------
    Image
        On the grid of the series; FA is zero outside the brain.
    """
    if contrast == "fa":
        return _fa_image(dwi, motion)
    volumes = reference_volumes(dwi.gradients, motion.unplaced)
    points = grid_points(dwi.shape, dwi.affine)
    total = np.zeros(len(points))
    for volume in volumes:
        total += np.nan_to_num(_read(dwi, motion, volume, points))
    return Image((total / len(volumes)).reshape(dwi.shape).astype(np.float32), dwi.affine)


def _fa_image(dwi: DWI, motion: Motion) -> Image:
    """Fit a tensor to the logarithms, a volume at a time."""
    gradients = dwi.gradients.rotated(motion.rotations)
    try:
        to_tensor = np.linalg.pinv(design_matrix(gradients))[:6]
    except (EddymotionError, ValueError) as error:
        raise EddymotionError(
            f"output space: FA needs more directions ({error}); register the mean b=0 (dwiref)"
        ) from error
    points = apply_affine(dwi.affine, np.argwhere(dwi.mask))
    floor = max(MIN_SIGNAL_FRACTION * float(dwi.signal.max()), 1e-6)
    tensor = np.zeros((6, len(points)))
    for volume in range(len(dwi)):
        signal = np.nan_to_num(_read(dwi, motion, volume, points), nan=floor)
        tensor += to_tensor[:, [volume]] * np.log(np.maximum(signal, floor))
    data = np.zeros(dwi.shape, np.float32)
    data[dwi.mask] = fractional_anisotropy(tensor)
    return Image(data, dwi.affine)


def fractional_anisotropy(tensor: np.ndarray) -> np.ndarray:
    """Return FA (P,), 0 … 1, of tensors xx, xy, yy, xz, yz, zz: (6, P)."""
    xx, xy, yy, xz, yz, zz = tensor
    matrices = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)
    values = np.clip(np.linalg.eigvalsh(matrices), 0, None)
    spread = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return np.sqrt(1.5 * spread / np.maximum((values**2).sum(axis=1), 1e-30))


def _read(dwi: DWI, motion: Motion, volume: int, points: np.ndarray) -> np.ndarray:
    """Read a volume where points (P, 3) of the reference frame were recorded; NaN outside."""
    return dwi.volume(volume).spline.sample(motion.recorded(volume, points))

# SPDX-License-Identifier: Apache-2.0
"""How bright the brain of a volume is, and which parts of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.series import Series
from eddymotion.machine.frozen import once_per_value

BLOCKS_ACROSS = 14
"""Blocks (8 mm in a human head) between which brightness is compared: coarser than the motion."""

MIN_BLOCKS = 20

FLOOR_VOXELS = 5000
"""About this many voxels outside the brain yield the floor."""

SHARES = (0.25, 0.5, 0.75, 0.95)
"""Of the brain that is darker. The edge is among the darkest, and moves with the mask."""


@dataclass(frozen=True, eq=False)
class BrainBlocks:
    """Blocks of voxels in the brain.

    Parameters
    ----------
    box : tuple of slices
        Of the image, around the brain.
    factors : (3,) int array
        Voxels of a block along each axis.
    inside : bool array
        Blocks of the box that are brain.
    """

    box: tuple[slice, ...]
    factors: np.ndarray
    inside: np.ndarray

    @classmethod
    def of(cls, dwi: Series) -> BrainBlocks | None:
        """Divide the brain of a series; None where it is too small."""
        if not dwi.mask.any():
            return None
        box = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(dwi.mask))
        mask = dwi.mask[box]
        factors = np.minimum(_block_shape(dwi), mask.shape)
        inside = _block_means(mask, factors) > 0.75
        return cls(box, factors, inside) if inside.sum() >= MIN_BLOCKS else None

    @property
    def places(self) -> np.ndarray:
        """Middle of each, in the voxels of the box from its middle, (3, B)."""
        middles = np.argwhere(self.inside).T * self.factors[:, None]
        return np.asarray(middles - middles.mean(axis=1, keepdims=True))

    def means(self, boxed: np.ndarray) -> np.ndarray:
        """Average each, of an image that is cut to the box: (B,)."""
        return _block_means(boxed, self.factors)[self.inside]


@dataclass(frozen=True, eq=False)
class Appearance:
    """How the volumes look in the brain.

    Parameters
    ----------
    brightness : (N,) array
        Logarithm of the median signal.
    patterns : (N, B) array
        Signal of blocks, of mean zero and length one: products are correlations.
    floor : float
        Median signal of what is no brain, in the darkest volume: hardly any brain is darker.
    """

    brightness: np.ndarray
    patterns: np.ndarray
    floor: float = 0.0

    @classmethod
    def of(cls, dwi: Series) -> Appearance | None:
        """Look at a series; None where the brain is too small or a volume shows nothing."""
        return _appearance(dwi)

    def similarity(self, volume: int, others: np.ndarray) -> float:
        """Correlation of a volume's pattern with the mean of `others`, itself left out."""
        others = others[others != volume]
        mean = self.patterns[others].mean(axis=0) if len(others) else np.zeros(1)
        length = np.linalg.norm(mean)
        return float(self.patterns[volume] @ mean / length) if length > 0 else 0.0


@once_per_value
def _appearance(dwi: Series) -> Appearance | None:
    blocks = BrainBlocks.of(dwi)
    if blocks is None:
        return None
    shown = np.stack([blocks.means(volume[blocks.box]) for volume in dwi.volumes()])
    signal = np.median(shown, axis=1)
    if not (signal > 0).all():
        return None
    patterns = shown - shown.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(patterns, axis=1, keepdims=True)
    if not (lengths > 0).all():  # one value everywhere: reported when the motion is sought
        return None
    return Appearance(np.log(signal), patterns / lengths, _floor(dwi))


def _floor(dwi: Series) -> float:
    """Return the median signal outside the brain, of the volume where it is least."""
    outside = np.flatnonzero(~dwi.mask.ravel())
    if not len(outside):
        return 0.0
    some = np.unravel_index(outside[:: -(-len(outside) // FLOOR_VOXELS)], dwi.mask.shape)
    return float(min(np.median(volume[some]) for volume in dwi.volumes()))


def levels_anywhere(dwi: Series, volume: np.ndarray) -> np.ndarray | None:
    """Return levels of the signal (logarithm) that do not depend on where the head is.

    The brain is taken to be the brightest blocks, as many as it has: :data:`SHARES` of them are
    darker. The last level is that of the usual brain and the usual background together, which
    noise all over the volume has twice as high. None where the brain is too small or the volume
    shows nothing.
    """
    factors = np.minimum(_block_shape(dwi), dwi.shape)
    n_blocks = round(dwi.mask.sum() / np.prod(factors))
    blocks = np.sort(_block_means(volume, factors), axis=None)[::-1]
    brain, beside = blocks[:n_blocks], blocks[n_blocks:]
    if n_blocks < MIN_BLOCKS or not brain[-1] > 0:
        return None
    background = np.maximum(np.median(beside), 0.0) if len(beside) else 0.0
    return np.log([*np.quantile(brain, SHARES), np.median(brain) + background])


def _block_shape(dwi: Series) -> np.ndarray:
    """Return the voxels of a block along each axis, (3,)."""
    edge = np.cbrt(dwi.mask.sum() * np.prod(dwi.voxel_sizes)) / BLOCKS_ACROSS
    return np.maximum(np.round(edge / dwi.voxel_sizes).astype(int), 1)


def _block_means(volume: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Average blocks of voxels, whole ones only; adding strided views copies no voxel first."""
    means = volume
    for axis in (2, 1, 0):  # the slowest of a NIfTI file first: what is added lies together
        step = factors[axis]
        whole = means.shape[axis] // step * step
        views = [np.moveaxis(means, axis, 0)[first:whole:step] for first in range(step)]
        added: np.ndarray = np.array(views[0], np.float32 if axis else np.float64)
        for view in views[1:]:
            added += view
        means = np.moveaxis(added, 0, axis)
    return means / np.prod(factors)

# SPDX-License-Identifier: Apache-2.0
"""What the displacement of the head changes of how volumes look, before any motion is known.

A small displacement ``u(x)`` changes an image ``m`` by ``−u · ∇m``. Of a motion, of a stretch or
of a shear it is linear in the place, so that the twelve images ``∂m/∂xₐ`` and ``x_b ∂m/∂xₐ`` span
all such changes; ``m`` and ``xₐ m`` do those of brightness. Within a block, which is small beside
the head, the place is that of its middle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.data.checks.appearance import BrainBlocks
from eddymotion.data.series import Series

LEAST_BLOCKS = 160
"""Least number of blocks: ten for each of the sixteen changes."""


def displacement_bases(dwi: Series, groups: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Return orthonormal patterns that displacements add to volumes, (16, B) for each group.

    Parameters
    ----------
    dwi : Series
    groups : sequence of index arrays
        Volumes that look about alike.

    Returns
    -------
    list of (16, B) arrays
        Of mean zero; None where the brain has too few blocks.
    """
    blocks = BrainBlocks.of(dwi)
    if blocks is None or blocks.inside.sum() < LEAST_BLOCKS:
        return None
    shape = tuple(of_axis.stop - of_axis.start for of_axis in blocks.box)
    sums = np.zeros((len(groups), *shape), np.float32)
    for number, volume in enumerate(dwi.volumes()):
        for total, group in zip(sums, groups, strict=True):
            if number in group:
                total += volume[blocks.box]
    return [_basis(total, blocks) for total in sums]


def _basis(image: np.ndarray, blocks: BrainBlocks) -> np.ndarray:
    slopes = [blocks.means(slope) for slope in np.gradient(image)]
    base = np.stack([*slopes, blocks.means(image)])
    linear = blocks.places[:, None] * base
    changes = np.concatenate([base, linear.reshape(-1, base.shape[1])])
    changes -= changes.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(changes, axis=1, keepdims=True)
    basis: np.ndarray = np.linalg.qr((changes / np.maximum(lengths, 1e-30)).T)[0].T
    return basis

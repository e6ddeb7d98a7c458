# SPDX-License-Identifier: Apache-2.0
"""Whether noise was removed before the correction.

Denoising by principal components (MP-PCA, NORDIC) writes what neighbouring voxels show as a few
patterns over the volumes. At low SNR the small changes that motion makes in each volume are not
among them: they are removed with the noise, and a head that moved looks at rest. Raw noise is
independent from volume to volume, so that none of the patterns is without it, and it leaves a
floor in the magnitude of voxels without signal. Denoised volumes keep the floor and have hardly
any noise in the least of the patterns.
"""

from __future__ import annotations

import numpy as np
import scipy

from eddymotion.data.gradients import comparable_groups
from eddymotion.data.series import DWI
from eddymotion.images.zeros import solid_constants

RADIUS = 2
"""Neighbours to each side that are looked at together, as MP-PCA does."""

N_PATCHES, MAX_VOLUMES = 150, 32

TAIL_SHARE = 0.07
"""Variance in the lesser half of the patterns, as part of what they had if all were alike. Raw:
0.02 (SNR 40) to 0.45 (SNR 10, b=3000); after MP-PCA less than 0.01, or 0.05 where each voxel gets
the patterns of its own neighbours."""

TAIL_TO_FLOOR = 0.19
"""Standard deviation in the lesser half over the floor, in air and in the darkest tissue. Raw
series whose share is that small have at least 0.3; after MP-PCA 0.04 to 0.16."""

DARKEST, AIR_QUANTILE, AIR_VOXELS = 0.02, 0.25, 4
MIN_AIR = 0.05
"""Least share of the voxels around the head that have a signal: without it there is no air."""


def is_denoised(dwi: DWI) -> bool:
    """Whether a series has far less noise than its noise floor implies.

    False where this is not known: with few volumes, or without air.
    """
    group = max(comparable_groups(dwi.gradients), key=len)[:MAX_VOLUMES]
    patches = _patches(dwi, group)
    if not len(patches):
        return False
    shares, tails = zip(*(_tail(patch) for patch in patches), strict=True)
    share, tail = np.median(shares), np.median(tails)
    if share > TAIL_SHARE:
        return False
    floors = [
        np.quantile(np.asarray(dwi.signal[..., volume], float)[dwi.mask], DARKEST)
        for volume in group
    ]
    air = _air(dwi, group)
    if air is None and not dwi.is_cut:
        return False
    floors = [float(np.median(floors)), *([] if air is None else [air])]
    return bool(tail < TAIL_TO_FLOOR * min(floors))


def _patches(dwi: DWI, group: np.ndarray) -> list[np.ndarray]:
    """Cubes of voxels of the brain, (voxels, volumes) each, without their mean over voxels."""
    radius = np.minimum(RADIUS, (np.array(dwi.shape) - 1) // 2)
    middles = np.argwhere(dwi.mask)
    inside = (middles >= radius) & (middles < np.array(dwi.shape) - radius)
    middles = middles[inside.all(axis=1)]
    size = int(np.prod(2 * radius + 1))
    if len(group) < 6 or size < 2 * len(group) or not len(middles):
        return []
    middles = middles[:: max(1, len(middles) // N_PATCHES)]
    found = []
    for middle in middles:
        box = tuple(slice(m - r, m + r + 1) for m, r in zip(middle, radius, strict=True))
        patch = np.asarray(dwi.signal[box][..., group], float).reshape(size, len(group))
        found.append(patch - patch.mean(axis=0))
    return found


def _tail(patch: np.ndarray) -> tuple[float, float]:
    """Share and standard deviation of the lesser half of the patterns."""
    variances = np.maximum(np.linalg.eigvalsh(patch.T @ patch / len(patch)), 0.0)
    lesser = variances[: len(variances) // 2]  # in ascending order
    total = variances.mean()
    return float(lesser.mean() / total) if total > 0 else 0.0, float(np.sqrt(lesser.mean()))


def _air(dwi: DWI, group: np.ndarray) -> float | None:
    """Usual magnitude far from the brain; None where nothing was recorded there."""
    outside = ~scipy.ndimage.binary_dilation(dwi.mask, iterations=AIR_VOXELS)
    volume = dwi.signal[..., group[0]]
    values = np.asarray(volume, float)[outside]
    recorded = values[(values > 0) & ~solid_constants(volume)[outside]]
    if len(recorded) < max(1.0, MIN_AIR * len(values)):
        return None
    return float(np.quantile(recorded, AIR_QUANTILE))

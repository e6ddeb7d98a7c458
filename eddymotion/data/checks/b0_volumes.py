# SPDX-License-Identifier: Apache-2.0
"""b=0 volumes that show no head, or show it at another gain than the others do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eddymotion.data.checks.appearance import BrainBlocks, levels_anywhere
from eddymotion.data.checks.labels import GAP
from eddymotion.data.series import DWI
from eddymotion.machine.frozen import once_per_value

WEIGHTED = 12
"""Volumes of the lowest b-values by which b=0 volumes are judged."""

ALIKE = 0.15
"""Patterns of two b=0 volumes correlate at least by this, with noise and motion."""

SAME_LEVELS = 0.2
"""Levels of the signal (logarithm) against each other: of two b=0 volumes of a head that moved
they differ by 0.03 at most, by 0.15 where it turned by 11° under a strong coil, and to noise by
0.78 or more. To diffusion-weighted ones they differ by 0.13 or more; these are darker, too."""


def lowest_weighted(dwi: DWI) -> np.ndarray:
    """Return some diffusion-weighted volumes of the lowest b-values, (k,)."""
    dwis = dwi.gradients.dwis
    return dwis[np.argsort(dwi.gradients.bvals[dwis], kind="stable")][:WEIGHTED]


@once_per_value
def empty_b0s(dwi: DWI) -> np.ndarray:
    """Find b=0 volumes without a head: darker than diffusion-weighted ones, and unlike the others.

    One that is dark as a whole shows the same pattern, or, where the head moved, the same levels.

    Returns
    -------
    index array
        Empty where no b=0 volume is left by which to judge.
    """
    b0s, blocks = dwi.gradients.b0s, BrainBlocks.of(dwi)
    if len(b0s) < 2 or blocks is None:
        return np.empty(0, int)

    def shown(volumes: np.ndarray) -> np.ndarray:
        return np.stack([blocks.means(dwi.signal[..., v][blocks.box]) for v in volumes])

    own, usual = shown(b0s), np.median(shown(lowest_weighted(dwi)))
    dark = np.median(own, axis=1) < usual * np.exp(-GAP)
    if dark.all() or not dark.any():
        return np.empty(0, int)
    others = own[~dark].mean(axis=0)
    levels = levels_anywhere(dwi, dwi.signal[..., b0s[~dark][0]])

    def has_head(volume: int, pattern: np.ndarray) -> bool:
        if np.ptp(pattern) > 0 and np.corrcoef(pattern, others)[0, 1] > ALIKE:
            return True
        there = levels_anywhere(dwi, dwi.signal[..., volume])
        return levels is not None and there is not None and np.ptp(there - levels) < SAME_LEVELS

    return np.array([v for v, one in zip(b0s[dark], own[dark], strict=True)
                     if not has_head(v, one)], int)  # fmt: skip


@once_per_value
def with_equal_b0s(dwi: DWI) -> DWI:
    """Give b=0 volumes that are far brighter or darker than others the brightness of these.

    Returns
    -------
    DWI
        The series itself where none is, which is usual.
    """
    b0s = np.setdiff1d(dwi.gradients.b0s, empty_b0s(dwi))
    found = [levels_anywhere(dwi, dwi.signal[..., volume]) for volume in b0s]
    levels = np.array([np.nan if one is None else np.median(one) for one in found])
    if not np.isfinite(levels).any():
        return dwi
    usual = np.nanquantile(levels, 0.5, method="higher")
    away = np.abs(levels - usual) > GAP
    if not away.any():
        return dwi
    signal = np.array(dwi.signal, np.float32)
    signal[..., b0s[away]] *= np.exp(usual - levels[away])
    return replace(dwi, signal=signal)

# SPDX-License-Identifier: Apache-2.0
"""Volumes that look like another shell in their own direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.labels import Mislabelled
from eddymotion.data.gradients import Gradients
from eddymotion.robust import robust_deviation

DIRECTIONS = 10
"""Volumes of a shell from which on its brightness is known as a function of the direction."""

MISPLACED_SCATTER, MISPLACED_LEAST = 6.0, 0.12
"""A volume belongs to another shell if it is farther from that function than the first times the
usual distance, farther than the second, and three times nearer to the other shell. Where all
fibres run alike, at SNR 8, sound volumes of b=3000 are up to 5.3 times as far away as usual, like
those of b=2000, so that these two shells cannot be distinguished there."""

MISPLACED_MARGIN = 0.1
"""By how much worse its pattern may agree with that of the other shell, of which few directions
give only a rough one."""


@dataclass(frozen=True, eq=False)
class _OfDirection:
    """How the volumes of a shell look, as a function of the direction.

    Parameters
    ----------
    bval : float
    brightness : (6,) array
    patterns : (6, B) array
        Coefficients of the products of a direction's components.
    scatter : float
        Usual distance of the brightness from it.
    """

    bval: float
    brightness: np.ndarray
    patterns: np.ndarray
    scatter: float

    @classmethod
    def of(
        cls, appearance: Appearance, shell: np.ndarray, gradients: Gradients
    ) -> _OfDirection | None:
        """Fit the volumes of a shell, misplaced ones left out; None if they are too few."""
        if len(shell) < DIRECTIONS or gradients.is_trace[shell].any():
            return None
        design = direction_products(gradients.bvecs[shell])
        brightness = appearance.brightness[shell]
        penalty = 1e-2 * len(shell) * (np.eye(6) - _ISOTROPIC)
        away = brightness - np.median(brightness)
        for _ in range(20):
            scatter = max(robust_deviation(away), 0.01)
            weights = 1 / (1 + (away / (2 * scatter)) ** 2) ** 2
            weighted = design.T * weights
            normal = weighted @ design + penalty
            fitted = np.linalg.solve(normal, weighted @ brightness)
            away = brightness - design @ fitted
        patterns = np.linalg.solve(normal, weighted @ appearance.patterns[shell])
        return cls(float(gradients.bvals[shell].mean()), fitted, patterns, scatter)

    def distance(self, appearance: Appearance, volume: int, bvec: np.ndarray) -> float:
        """Brightness of a volume above that of a volume of this shell and its direction."""
        return float(appearance.brightness[volume] - direction_products(bvec) @ self.brightness)

    def similarity(self, appearance: Appearance, volume: int, bvec: np.ndarray) -> float:
        """Correlation of its pattern with that of such a volume."""
        expected = direction_products(bvec) @ self.patterns
        return float(appearance.patterns[volume] @ expected / max(np.linalg.norm(expected), 1e-12))


_ISOTROPIC = np.outer([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]) / 3
"""Of the products, the part that no direction changes."""


def direction_products(bvecs: np.ndarray) -> np.ndarray:
    """Products of the components of directions, (..., 6)."""
    x, y, z = np.moveaxis(bvecs, -1, 0)
    root = np.sqrt(2.0)
    return np.stack([x * x, y * y, z * z, root * x * y, root * x * z, root * y * z], axis=-1)


def of_other_shells(appearance: Appearance, gradients: Gradients) -> list[Mislabelled]:
    """Find volumes that look like those of another shell and of their direction."""
    if not gradients.is_shelled:
        return []
    fits = [_OfDirection.of(appearance, shell, gradients) for shell in gradients.shells]
    found: list[Mislabelled | None] = []
    for shell, own in zip(gradients.shells, fits, strict=True):
        others = [one for one in fits if one is not None and one is not own]
        if own is not None and others:
            found += [_judged(appearance, gradients, int(v), own, others) for v in shell]
    return [one for one in found if one is not None]


def _judged(
    appearance: Appearance,
    gradients: Gradients,
    volume: int,
    own: _OfDirection,
    others: Sequence[_OfDirection],
) -> Mislabelled | None:
    """Compare a volume with its own shell and the nearest other; None where it fits."""
    bvec = gradients.bvecs[volume]
    away = own.distance(appearance, volume, bvec)
    if abs(away) < max(MISPLACED_LEAST, MISPLACED_SCATTER * own.scatter):
        return None
    like = min(others, key=lambda one: abs(one.distance(appearance, volume, bvec)))
    is_near = abs(like.distance(appearance, volume, bvec)) < abs(away) / 3
    at_home = own.similarity(appearance, volume, bvec)
    if not is_near or like.similarity(appearance, volume, bvec) <= at_home - MISPLACED_MARGIN:
        return None
    label = float(gradients.bvals[volume])
    return Mislabelled(volume, label, like.bval, away > 0, certain=False)

# SPDX-License-Identifier: Apache-2.0
"""The images as a field, poses and gains correct them, and how they change with these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class FieldState:
    """Coefficients of the field, poses, and of the logarithms of the gains, (K, G)."""

    coefficients: np.ndarray
    poses: tuple[np.ndarray, ...]
    gains: np.ndarray


@dataclass(frozen=True, eq=False)
class FieldView:
    """The corrected images at a state, and how they change with it; P points.

    Parameters
    ----------
    values : (K, P) array
        Corrected images.
    seen : (K, P) bool array
    by_field : (K, P) array
        Derivative by the field.
    by_slope : (K, P) array
        Derivative by the stretch, times mm per Hz.
    shifts : (K, 3) array
        Direction of the phase encoding in the head's frame.
    by_pose : tuple of (6, P) arrays
        Derivatives by translation and rotation of all images but the first.
    """

    values: np.ndarray
    seen: np.ndarray
    by_field: np.ndarray
    by_slope: np.ndarray
    shifts: np.ndarray
    by_pose: tuple[np.ndarray, ...]

    @cached_property
    def n_seen(self) -> np.ndarray:
        """Images that show each point, at least one: (P,)."""
        return np.maximum(self.seen.sum(axis=0, dtype=np.float32), 1)

    @cached_property
    def residuals(self) -> np.ndarray:
        """Differences from the mean of the images that show a point, (K, P)."""
        return self.centred(self.values)

    def centred(self, values: np.ndarray) -> np.ndarray:
        """Take the mean over the images that show a point off values (K, P)."""
        mean = (values * self.seen).sum(axis=0) / self.n_seen
        return np.where(self.seen, values - mean, np.float32(0))

    @cached_property
    def squares(self) -> np.ndarray:
        """Sums of squared residuals, (P,)."""
        return (self.residuals**2).sum(axis=0)

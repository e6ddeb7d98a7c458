# SPDX-License-Identifier: Apache-2.0
"""Values of the volumes of a group at points of the head, and their residuals from the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from eddymotion.estimation.equations.few_terms import Filter
from eddymotion.estimation.outliers import is_lost, slice_heights
from eddymotion.mapping.motion import Motion
from eddymotion.models.base import LEVERAGE_GUARD
from eddymotion.robust import Cauchy

MAX_MISSING = 0.25
"""A point at which a larger share of the volumes has no value is left out."""

FILL_ITERATIONS = 6
"""Of predicting missing values from the others, and from each other."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Values and gradients of the volumes at the points, under some motion.

    Parameters
    ----------
    motion : Motion
    values : (N, V) float32 array
    slopes : (3, N, V) float32 array
        Gradients along the axes of the head's frame, per mm.
    missing : (N, V) bool array
        Where a volume has no value.
    """

    motion: Motion
    values: np.ndarray
    slopes: np.ndarray
    missing: np.ndarray


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residuals of the samples from the model.

    Parameters
    ----------
    samples : Samples
        Missing values filled with predictions.
    precision : (N, N) array
        ``P``
    values : (N, V) float32 array
        ``Py``, zero where nothing was known.
    misfit : (V,) array
        ``q = yᵀPy / N``
    """

    samples: Samples
    precision: np.ndarray
    values: np.ndarray
    misfit: np.ndarray

    def under(self, motion: Motion) -> Residuals:
        """Return the same under a motion that differs in unknowns that are zero."""
        return replace(self, samples=replace(self.samples, motion=motion))

    @cached_property
    def filter(self) -> Filter:
        """The precision as an operator."""
        return Filter.of(self.precision)

    @cached_property
    def usable(self) -> np.ndarray:
        """Points that most volumes show, (V,) bool."""
        return self.samples.missing.mean(axis=0) <= MAX_MISSING

    @cached_property
    def spread(self) -> Cauchy:
        """Of the misfit."""
        return Cauchy.of(self.misfit[self.usable])

    @property
    def cost(self) -> float:
        """Mean −log-likelihood of a point."""
        return self.spread.cost(self.misfit[self.usable])

    @property
    def weights(self) -> np.ndarray:
        """Of the points, (V,)."""
        return np.where(self.usable, self.spread.weights(self.misfit), 0.0)


def smoothed(
    slopes: np.ndarray,
    missing: np.ndarray,
    smoother: Filter,
    leverage: np.ndarray | None = None,
) -> np.ndarray:
    """Return the gradients of the predictions, made of those of the volumes: (N, 3, V) float32.

    Parameters
    ----------
    slopes : (3, N, V) float32 array
        Of the volumes.
    missing : (N, V) bool array
        Where the result is zero.
    smoother : Filter
        The precision ``P``: a prediction is ``y − Py``.
    leverage : (N,) array, optional
        Divides ``Py``; with the diagonal of ``P`` the predictions are the leave-one-out ones.
    """
    last, *others = smoother.predictors(leverage)
    found = np.empty((slopes.shape[1], 3, slopes.shape[2]), np.float32)
    for axis in range(3):
        shown = slopes[axis]
        for matrix in reversed(others):
            shown = matrix @ shown
        np.matmul(last, shown, out=found[:, axis])
    if missing.any():
        found.transpose(0, 2, 1)[missing] = 0.0
    return found


def filled(values: np.ndarray, gone: np.ndarray, precision: Filter) -> np.ndarray:
    """Replace what is `gone` of the values (N, V) by what the others predict: float32."""
    leverage = np.maximum(precision.leverage, LEVERAGE_GUARD)[:, None]
    values = np.where(gone, 0.0, values).astype(np.float32)
    for _ in range(FILL_ITERATIONS):
        values = np.where(gone, values - (precision @ values) / leverage, values)
    return values


class Lost(Protocol):
    """Where volumes have no signal."""

    def at(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Whether a volume has lost its signal at world points (V, 3), or within a slice of it."""


@dataclass(frozen=True, eq=False)
class LostSlices:
    """Slices without signal.

    Parameters
    ----------
    flagged : (N, Z) bool array
    affine : (4, 4) array
        Of the images.
    axis : int
        Which of their axes counts the slices.
    """

    flagged: np.ndarray
    affine: np.ndarray
    axis: int = 2

    def at(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Whether a volume has lost its signal at world points (V, 3), or within a slice of it."""
        return is_lost(self.flagged[volume], slice_heights(points, self.affine, self.axis))

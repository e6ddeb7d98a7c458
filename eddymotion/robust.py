# SPDX-License-Identifier: Apache-2.0
"""Robust statistics: weights, scales and covariances that outliers do not spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAD_TO_SIGMA = 1.4826
"""Standard deviation of normal values over their median distance from the middle."""

Z_95 = 1.96
"""Standard errors on each side of a 95 % interval."""

TINY = float(np.finfo(float).tiny)


def robust_deviation(away: np.ndarray) -> float:
    """Return the standard deviation by the median of absolute distances from the middle."""
    return MAD_TO_SIGMA * float(np.median(np.abs(away)))


def over_known(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    """Return a statistic of the values that are finite; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(statistic(known)) if known.size else np.nan


def known_medians(values: np.ndarray) -> np.ndarray:
    """Return the medians of the finite values along the last axis, (…); NaN where there are none.

    All rows at once: they are sorted, what is not finite behind the others.
    """
    known = np.isfinite(values)
    ordered, n = np.sort(np.where(known, values, np.nan), axis=-1), known.sum(axis=-1)
    middle = np.stack([np.maximum(n - 1, 0) // 2, n // 2], -1)
    return np.take_along_axis(ordered, middle, axis=-1).mean(axis=-1)


def student_weights(squares: np.ndarray, n_values: int = 1, freedom: float = 1.0) -> np.ndarray:
    """Weights of a Student-t distribution by the squared distances, in units of its scale.

    ``(ν + p) / (ν + d²)`` for ν degrees of freedom and p values each (Lange et al. 1989, Journal
    of the American Statistical Association 84:881).
    """
    return (freedom + n_values) / (freedom + squares)


@dataclass(frozen=True)
class Cauchy:
    """A Cauchy distribution: Student-t with one degree of freedom.

    Parameters
    ----------
    square : float64
        Of its scale; in double precision, whatever the values are in.
    """

    square: np.float64

    @classmethod
    def of(cls, squares: np.ndarray) -> Cauchy:
        """Take the scale within which half of the values are, from their squares."""
        return cls(np.float64(np.median(squares)) + TINY)

    @classmethod
    def within(cls, scale: float) -> Cauchy:
        """Take a scale, the distance within which half of the values are."""
        return cls(np.float64(scale) ** 2 + TINY)

    def weights(self, squares: np.ndarray) -> np.ndarray:
        """Weigh values by their squares: 2 in the middle, 1 at the scale."""
        return student_weights(squares / self.square)

    def cost(self, squares: np.ndarray) -> float:
        """Return the mean −log-likelihood of values, but for what the scale alone adds."""
        return float(np.log(squares + self.square).mean())


def sandwich(parts: np.ndarray, n_fitted: int = 0) -> np.ndarray:
    """Covariance of a solution by what independent parts of the data add to it, (…, p, p).

    With ``G_b`` what part ``b`` adds to the right side of normal equations, ``H⁻¹ G_b`` is what it
    adds to the solution, and their scatter is the covariance of the solution (Liang & Zeger 1986,
    Biometrika 73:13).

    Parameters
    ----------
    parts : (…, p, B) array
        ``H⁻¹ G_b``
    n_fitted : int
        Degrees of freedom among the B parts that the solution took.
    """
    n = parts.shape[-1]
    return parts @ parts.swapaxes(-1, -2) * (n / max(n - n_fitted, 1))

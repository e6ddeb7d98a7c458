# SPDX-License-Identifier: Apache-2.0
"""How a head moves from knot to knot: a random walk with jumps.

There are three kinds of increments of the pose: within volumes, between two volumes in which the
head moved, and to or from a volume in which it was at rest. They have Student-t distributions with
one degree of freedom, so that a head may lie still for long and then jump. Their scales, one for
each kind and parameter, are learnt from the posterior (MacKay 1992, Neural Computation 4:415):
``σ² = Σ w d² / γ``, with ``γ`` the number of increments that the data determine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import scipy

from eddymotion.estimation.within_volumes.knots import Knots
from eddymotion.robust import student_weights

WITHIN, BETWEEN, BESIDE_REST = range(3)
"""Kinds of increments."""

FIRST_SCALE_MM = 0.3
LEAST_SCALE_MM, LARGEST_SCALE_MM = 1e-3, 20.0

FEW_INCREMENTS = 4
"""Least number of increments that determine the scale of a kind."""

LEAST_DETERMINED = 0.02
"""Least share of the increments that counts as determined."""


@dataclass(frozen=True, eq=False)
class Increments:
    """Prior of the knots of a series.

    Parameters
    ----------
    change : (L, K) sparse array
        Knots → increments.
    kind : (L,) array
    in_mm : (6,) array
        Millimetres for each unit of a twist.
    scale : (3, 6) array
        ``σ`` of each kind and parameter, mm.
    """

    change: scipy.sparse.csr_array
    kind: np.ndarray
    in_mm: np.ndarray
    scale: np.ndarray = field(default_factory=lambda: np.full((3, 6), FIRST_SCALE_MM))

    @classmethod
    def of(cls, knots: Knots, follows: np.ndarray, in_mm: np.ndarray) -> Increments:
        """Link knots that follow each other in time.

        Parameters
        ----------
        knots : Knots
        follows : (N - 1,) bool array
            Whether the next volume follows immediately, in the same run.
        in_mm : (6,) array
        """
        volume = knots.volume
        same = volume[1:] == volume[:-1]
        at_rest = ~(knots.moving[volume[1:]] & knots.moving[volume[:-1]])
        kind = np.where(same, WITHIN, np.where(at_rest, BESIDE_REST, BETWEEN))
        linked = np.flatnonzero(same | follows[np.minimum(volume[:-1], len(follows) - 1)])
        n = len(linked)
        places = np.repeat(np.arange(n), 2), (linked[:, None] + [0, 1]).ravel()
        shape = (n, knots.n_rows)
        change = scipy.sparse.csr_array((np.tile([-1.0, 1.0], n), places), shape=shape)
        return cls(change, kind[linked], in_mm)

    @property
    def first(self) -> np.ndarray:
        """Knot at which each increment begins, (L,)."""
        return self.change.indices.reshape(-1, 2)[:, 0]

    def weights(self, twists: np.ndarray) -> np.ndarray:
        """Student-t weight of each increment under twists (K, 6): (L,)."""
        size = (((self.change @ twists) * self.in_mm / self.scale[self.kind]) ** 2).sum(axis=1)
        return student_weights(size, n_values=6)

    def precision(self, weights: np.ndarray) -> list[scipy.sparse.csr_array]:
        """Precision of each of the six parameters, (K, K) each."""
        found = []
        for axis in range(6):
            of_increments = weights * (self.in_mm[axis] / self.scale[self.kind, axis]) ** 2
            found.append(self.change.T @ scipy.sparse.diags_array(of_increments) @ self.change)
        return found

    def learnt(self, twists: np.ndarray, weights: np.ndarray, variances: np.ndarray) -> Increments:
        """Learn the scales.

        Parameters
        ----------
        twists : (K, 6) array
        weights : (L,) array
        variances : (K - 1, 6) array
            Of each knot less the one before it, by the posterior.
        """
        moved = (self.change @ twists) * self.in_mm
        scale = self.scale.copy()
        for axis in range(6):
            left = variances[self.first, axis] * self.in_mm[axis] ** 2
            for kind in range(3):
                of_kind = self.kind == kind
                n = of_kind.sum()
                if n < FEW_INCREMENTS:
                    continue
                old = self.scale[kind, axis]
                undetermined = (weights[of_kind] * left[of_kind]).sum() / old**2
                determined = max(n - undetermined, LEAST_DETERMINED * n)
                found = np.sqrt((weights[of_kind] * moved[of_kind, axis] ** 2).sum() / determined)
                low, high = max(LEAST_SCALE_MM, old / 4), min(LARGEST_SCALE_MM, 3 * old)
                scale[kind, axis] = np.clip(found, low, high)
        return replace(self, scale=scale)

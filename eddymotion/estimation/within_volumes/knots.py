# SPDX-License-Identifier: Apache-2.0
"""The course of the head as knots in time, joined by straight lines.

A volume in which the head moved has M knots, the first at its first and the last at its last
excitation. One in which it was at rest has a single pose. No knot is shared by two volumes. The
unknowns are the K knots of all volumes, in the order of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eddymotion.data.acquisition import Slicing


@dataclass(frozen=True, eq=False)
class Knots:
    """Knots of N volumes.

    Parameters
    ----------
    basis : (Z, M) array
        Weight of each knot of a volume in the pose of each slice; rows add up to one.
    moving : (N,) bool array
        Volumes that have M knots; the others have one.
    """

    basis: np.ndarray
    moving: np.ndarray

    @classmethod
    def between(cls, slicing: Slicing, n_knots: int, moving: np.ndarray) -> Knots:
        """Space knots evenly from the first to the last excitation, at most one for each."""
        assert slicing.times is not None
        most = max(min(n_knots, len(slicing.groups)), 2)
        basis = between_times(slicing.times, most)
        return cls(basis, np.array(moving, bool))

    @property
    def n_knots(self) -> int:
        """Knots ``M`` of a volume in which the head moved."""
        return self.basis.shape[1]

    @cached_property
    def row(self) -> np.ndarray:
        """Index among the K unknowns of each knot of each volume, (N, M)."""
        count = np.where(self.moving, self.n_knots, 1)
        first = np.cumsum(count) - count
        return first[:, None] + np.where(self.moving[:, None], np.arange(self.n_knots), 0)

    @property
    def n_rows(self) -> int:
        """Unknown poses ``K``."""
        return int(self.row[-1, -1]) + 1

    @cached_property
    def volume(self) -> np.ndarray:
        """The volume of each unknown, (K,)."""
        return np.repeat(np.arange(len(self.moving)), np.where(self.moving, self.n_knots, 1))

    def summed(self, of_knots: np.ndarray) -> np.ndarray:
        """Sum values of the knots (N, M, …) over those that share an unknown, (K, …)."""
        total = np.zeros((self.n_rows, *of_knots.shape[2:]))
        np.add.at(total, self.row, of_knots)
        return total

    def of_slices(self, twists: np.ndarray) -> np.ndarray:
        """Twists of the knots (K, 6) → of the slices, (N, Z, 6); equal in volumes at rest."""
        found = np.einsum("zm,nma->nza", self.basis, twists[self.row])
        found[~self.moving] = twists[self.row[~self.moving, :1]]
        return found

    def of_volumes(self, twists: np.ndarray) -> np.ndarray:
        """Twists of the knots (K, 6) → their mean over the slices of each volume, (N, 6)."""
        return np.einsum("m,nma->na", self.basis.mean(axis=0), twists[self.row])

    def taken_over(self, twists: np.ndarray, other: Knots) -> np.ndarray:
        """Twists (K', 6) of these knots from those (K, 6) of others of the same volumes."""
        there = np.linspace(0, 1, other.n_knots)
        here = np.linspace(0, 1, self.n_knots)
        full = other.of_knots(twists)
        found = np.array([[np.interp(here, there, axis) for axis in one.T] for one in full])
        found = found.transpose(0, 2, 1)
        found[~self.moving] = other.of_volumes(twists)[~self.moving, None]
        rows = np.empty((self.n_rows, 6))
        rows[self.row] = found
        return rows

    def of_knots(self, values: np.ndarray) -> np.ndarray:
        """Give each knot of each volume the value of its unknown: (K, …) → (N, M, …)."""
        return values[self.row]


def between_times(times: np.ndarray, n_knots: int) -> np.ndarray:
    """Return the weights (Z, M) at Z times of M knots that are spaced evenly over them."""
    times = times - times.min()
    place = times / times.max() * (n_knots - 1)
    before = np.minimum(place.astype(int), n_knots - 2)
    basis = np.zeros((len(times), n_knots))
    rows = np.arange(len(times))
    basis[rows, before] = 1 - (place - before)
    basis[rows, before + 1] = place - before
    return basis

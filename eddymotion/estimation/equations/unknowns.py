# SPDX-License-Identifier: Apache-2.0
"""The unknowns of a joint solution, in blocks: of each volume, or shared by all.

A block defines how the volumes change with its unknowns, how a step changes the motion, and what
is known beforehand; the normal equations of all blocks together
(:mod:`eddymotion.estimation.equations.normal_equations`) do not depend on their meaning. Every
block has the same number of columns in each volume. Its unknowns may be fewer: steps ``δ_i`` of
volume ``i`` are ``B z_i``, with ``B`` the directions of the block that the data determine; or, if
all volumes share the unknowns, ``Σ_d X_id B z_d`` with a design ``X``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from eddymotion.estimation.equations.twist_kernels import sum_twists
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid

POSES = "poses"


@dataclass(frozen=True, eq=False)
class PriorTerms:
    """What is known beforehand adds to the normal equations of a block of k columns.

    Parameters
    ----------
    gradient : (N, k) array
    precision : (k, N, N) array
        For each column, between volumes.
    """

    gradient: np.ndarray
    precision: np.ndarray


class Block(ABC):
    """Unknowns of one kind.

    Attributes
    ----------
    name : str
        Of their part of a solution.
    size : int
        Columns ``k`` in each volume.
    directions : (k, r) array, optional
        Columns by the directions along which steps are taken, ``B``; all when there are none.
    design : (N, D) array, optional
        ``X``, where all volumes share the unknowns.
    """

    name: str
    size: int
    directions: np.ndarray | None = None
    design: np.ndarray | None = None

    @abstractmethod
    def lengths(self, points: np.ndarray) -> np.ndarray:
        """Root-mean-square displacement (mm) of points (V, 3) for each column, (k,)."""

    @abstractmethod
    def columns(self, motion: Motion, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return how the volumes change with a step, (N, k, V) float32.

        Parameters
        ----------
        motion : Motion
        points : (V, 3) array
            In the head's frame, RAS+ mm.
        slopes : (N, 3, V) float32 array
            Of the volumes along the axes of that frame.
        """

    def pulls(
        self,
        motion: Motion,
        points: np.ndarray,
        slopes: np.ndarray,
        factors: np.ndarray,
        parts: np.ndarray,
    ) -> np.ndarray:
        """Sum :meth:`columns` times factors over the points of each part, (B, N, k).

        Parameters
        ----------
        motion, points, slopes
            As there.
        factors : (N, V) float32 array
        parts : (V,) int array
            In which of B parts each point is: ascending, from zero on.
        """
        columns = self.columns(motion, points, slopes)
        columns *= factors[:, None]
        starts = np.flatnonzero(np.diff(parts, prepend=-1))
        return np.add.reduceat(columns, starts, axis=2).transpose(2, 0, 1)

    @abstractmethod
    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, k) off the motion."""

    def prior(self, motion: Motion) -> PriorTerms | None:
        """Return what is known beforehand; None for nothing."""
        return None


class Poses(Block):
    """The pose of each volume: steps ``T ← T exp(−δ)``, translation (mm) and rotation (rad).

    Parameters
    ----------
    center : (3,) array
        About which heads turn, RAS+ mm.
    directions : (6, r) array, optional
        The motion that the images show (:mod:`eddymotion.estimation.equations.undetermined`).
    """

    name, size = POSES, 6

    def __init__(self, center: np.ndarray, directions: np.ndarray | None = None) -> None:
        self.center, self.directions = center, directions

    def lengths(self, points: np.ndarray) -> np.ndarray:
        """One for translations, the root-mean-square distance from the centre for rotations."""
        radius = np.sqrt(((points - self.center) ** 2).sum(axis=1).mean())
        return np.array([1.0] * 3 + [radius] * 3)

    def columns(self, motion: Motion, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return the slopes, and their moments about the centre."""
        x, y, z = (points - self.center).T.astype(np.float32)
        gx, gy, gz = slopes[:, 0], slopes[:, 1], slopes[:, 2]
        found = np.empty((len(slopes), 6, len(points)), np.float32)
        found[:, :3] = slopes
        found[:, 3] = y * gz - z * gy
        found[:, 4] = z * gx - x * gz
        found[:, 5] = x * gy - y * gx
        return found

    def pulls(
        self,
        motion: Motion,
        points: np.ndarray,
        slopes: np.ndarray,
        factors: np.ndarray,
        parts: np.ndarray,
    ) -> np.ndarray:
        """Sum forces and their moments about the centre, without the columns."""
        return sum_twists(points - self.center, slopes, factors, parts)

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Move each volume."""
        return replace(motion, matrices=motion.matrices @ exp_rigid(-step, self.center))


@dataclass(frozen=True, eq=False)
class Unknowns:
    """Blocks of unknowns side by side.

    Parameters
    ----------
    blocks : sequence of Block
    """

    blocks: Sequence[Block]

    def __len__(self) -> int:
        return sum(block.size for block in self.blocks)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Where each block is among the columns of a volume."""
        found, first = {}, 0
        for block in self.blocks:
            found[block.name] = slice(first, first := first + block.size)
        return found

    def only(self, name: str) -> Unknowns:
        """Return one of the blocks alone."""
        return Unknowns([block for block in self.blocks if block.name == name])

    def lengths(self, points: np.ndarray) -> np.ndarray:
        """Root-mean-square displacement (mm) of points (V, 3) for each column, (p,)."""
        return np.concatenate([block.lengths(points) for block in self.blocks])

    def jacobian(self, motion: Motion, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return how the volumes change with a step, (N, p, V); see :meth:`Block.columns`."""
        found = [block.columns(motion, points, slopes) for block in self.blocks]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def pulls(
        self,
        motion: Motion,
        points: np.ndarray,
        slopes: np.ndarray,
        factors: np.ndarray,
        parts: np.ndarray,
    ) -> np.ndarray:
        """Sum :meth:`jacobian` times factors over parts, (B, N, p); see :meth:`Block.pulls`."""
        given = motion, points, slopes, factors, parts
        return np.concatenate([block.pulls(*given) for block in self.blocks], axis=2)

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, p) off the motion."""
        for block in self.blocks:
            motion = block.moved(motion, step[:, self.columns[block.name]])
        return motion

    def priors(self, motion: Motion) -> dict[str, PriorTerms]:
        """Return what is known beforehand of each block."""
        found = {block.name: block.prior(motion) for block in self.blocks}
        return {name: terms for name, terms in found.items() if terms is not None}

    def basis(self, n_volumes: int) -> scipy.sparse.csr_array | None:
        """Return the steps (N p) that unknowns amount to, (N p, M); None where it is the identity.

        ``X ⊗ B`` of each block, side by side.
        """
        if all(block.design is None and block.directions is None for block in self.blocks):
            return None
        parts, every = [], scipy.sparse.eye_array(len(self), format="csc")
        for block in self.blocks:
            along = every[:, self.columns[block.name]]
            if block.directions is not None:
                along = along @ scipy.sparse.csc_array(block.directions)
            design = scipy.sparse.eye_array(n_volumes) if block.design is None else block.design
            parts.append(scipy.sparse.kron(design, along))
        return scipy.sparse.hstack(parts, format="csr")

# SPDX-License-Identifier: Apache-2.0
"""What a joint solution solves for: blocks of unknowns of each volume, or shared by all.

A block says how the volumes change with its unknowns, how a step moves the motion, and what is
known beforehand; the normal equations of all blocks together
(:mod:`eddymotion.estimation.normal_equations`) know nothing of their meaning. Every block has the
same number of columns in each volume. Its unknowns may be fewer: steps ``δ_i`` of volume ``i`` are
``B z_i``, with ``B`` the directions of the block that the data determine; or, where all volumes
share the unknowns, ``Σ_d X_id B z_d`` by a design ``X``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy import sparse

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


class Block(Protocol):
    """Unknowns of one kind."""

    @property
    def name(self) -> str:
        """By which their part of a solution is asked for."""
        ...

    @property
    def size(self) -> int:
        """Columns in each volume."""
        ...

    @property
    def directions(self) -> np.ndarray | None:
        """Columns by directions along which steps are taken, ``B`` (k, r); None for all."""
        ...

    @property
    def design(self) -> np.ndarray | None:
        """``X`` (N, D), where all volumes share the unknowns; None where each has its own."""
        ...

    def lengths(self, points: np.ndarray) -> np.ndarray:
        """Root-mean-square displacement (mm) of points (V, 3) for each column, (k,)."""
        ...

    def fill(
        self, motion: Motion, points: np.ndarray, slopes: np.ndarray, columns: np.ndarray
    ) -> None:
        """Fill in how the volumes change with a step.

        Parameters
        ----------
        motion : Motion
        points : (V, 3) array
            In the head's frame, RAS+ mm.
        slopes : (N, 3, V) float32 array
            Of the volumes along the axes of that frame.
        columns : (N, k, V) float32 array
            Filled.
        """
        ...

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, k) off the motion."""
        ...

    def prior(self, motion: Motion) -> PriorTerms | None:
        """Return what is known beforehand; None for nothing."""
        ...


@dataclass(frozen=True, eq=False)
class Poses:
    """The pose of each volume: steps ``T ← T exp(−δ)``, translation (mm) and rotation (rad).

    Parameters
    ----------
    center : (3,) array
        About which heads turn, RAS+ mm.
    directions : (6, r) array, optional
        The motion that the images show (:mod:`eddymotion.estimation.undetermined`).
    """

    center: np.ndarray
    directions: np.ndarray | None = None

    name = POSES
    size = 6
    design = None

    def lengths(self, points: np.ndarray) -> np.ndarray:
        """See :class:`Block`."""
        radius = np.sqrt(((points - self.center) ** 2).sum(axis=1).mean())
        return np.array([1.0] * 3 + [radius] * 3)

    def fill(
        self, motion: Motion, points: np.ndarray, slopes: np.ndarray, columns: np.ndarray
    ) -> None:
        """See :class:`Block`: the slopes, and their moments about the centre."""
        x, y, z = (points - self.center).T.astype(np.float32)
        gx, gy, gz = slopes[:, 0], slopes[:, 1], slopes[:, 2]
        columns[:, :3] = slopes
        columns[:, 3] = y * gz - z * gy
        columns[:, 4] = z * gx - x * gz
        columns[:, 5] = x * gy - y * gx

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """See :class:`Block`."""
        return replace(motion, matrices=motion.matrices @ exp_rigid(-step, self.center))

    def prior(self, motion: Motion) -> None:
        """See :class:`Block`: nothing."""


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
        """Return how the volumes change with a step, (N, p, V); see :meth:`Block.fill`."""
        found = np.empty((len(slopes), len(self), slopes.shape[2]), np.float32)
        for block in self.blocks:
            block.fill(motion, points, slopes, found[:, self.columns[block.name]])
        return found

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, p) off the motion."""
        for block in self.blocks:
            motion = block.moved(motion, step[:, self.columns[block.name]])
        return motion

    def priors(self, motion: Motion) -> dict[str, PriorTerms]:
        """Return what is known beforehand of each block."""
        found = {block.name: block.prior(motion) for block in self.blocks}
        return {name: terms for name, terms in found.items() if terms is not None}

    def basis(self, n_volumes: int) -> sparse.csr_array | None:
        """Return the steps (N p) that unknowns amount to, (N p, M); None where it is the identity.

        ``X ⊗ B`` of each block, side by side.
        """
        if all(block.design is None and block.directions is None for block in self.blocks):
            return None
        parts, every = [], sparse.eye_array(len(self), format="csc")
        for block in self.blocks:
            along = every[:, self.columns[block.name]]
            if block.directions is not None:
                along = along @ sparse.csc_array(block.directions)
            design = sparse.eye_array(n_volumes) if block.design is None else block.design
            parts.append(sparse.kron(design, along))
        return sparse.hstack(parts, format="csr")

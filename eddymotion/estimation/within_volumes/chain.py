# SPDX-License-Identifier: Apache-2.0
"""Normal equations that couple neighbours in time only: a chain of blocks.

The images couple the knots of one volume. The prior of the increments couples the last knot of a
volume with the first of the next one, axis by axis. The matrix is banded and fast to solve.
Covariances of single volumes come from messages along the chain, as in a Kalman smoother. Let
``−diag(p)`` couple the last knot of a volume with the first of the next one, and ``L`` be the
precision of that last knot, given all volumes up to it. Then the volumes before add ``−p L⁻¹ p``
to the precision of the first knot. Those that follow add the same kind of term to the last knot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy


@dataclass(frozen=True, eq=False)
class Chain:
    """A block of the unknowns of each of N volumes, and links between neighbours.

    Parameters
    ----------
    blocks : sequence of (6 s, 6 s) arrays
        Of s knots each.
    links : (N - 1, 6) array
        Precision that couples the last knot of a volume with the first of the next one; the blocks
        contain it already.
    """

    blocks: Sequence[np.ndarray]
    links: np.ndarray

    @cached_property
    def factor(self) -> np.ndarray:
        """Its Cholesky factor, as lower bands."""
        sizes = [len(block) for block in self.blocks]
        bands = np.zeros((max(*sizes, 7), sum(sizes)))
        first = np.cumsum([0, *sizes])
        for start, block in zip(first, self.blocks, strict=False):
            for band in range(len(block)):
                bands[band, start : start + len(block) - band] = np.diagonal(block, -band)
        for end, link in zip(first[1:], self.links, strict=False):
            bands[6, end - 6 : end] = -link
        return scipy.linalg.cholesky_banded(
            bands, lower=True, overwrite_ab=True, check_finite=False
        )

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve for a right side (K, 6)."""
        flat = scipy.linalg.cho_solve_banded(
            (self.factor, True), right.ravel(), check_finite=False
        )
        return flat.reshape(-1, 6)

    @cached_property
    def covariances(self) -> list[np.ndarray]:
        """Blocks of its inverse, one per volume."""
        before, after = self._before[1], self._after[1]
        return [
            scipy.linalg.inv(_with(_with(block, 0, first), -1, last), assume_a="pos")
            for block, first, last in zip(self.blocks, before, after, strict=True)
        ]

    @cached_property
    def across(self) -> np.ndarray:
        """Covariance of the last knot of each volume with the first of the next: (N - 1, 6)."""
        last, first = self._before[0], self._after[0]
        found = np.zeros_like(self.links)
        for volume in np.flatnonzero(self.links.any(axis=1)):
            link = np.diag(-self.links[volume])
            pair = scipy.linalg.inv(np.block([[last[volume], link], [link, first[volume + 1]]]))
            found[volume] = np.diag(pair[:6, 6:])
        return found

    @cached_property
    def _before(self) -> tuple[list, list]:
        """Precision of each last knot given the volumes up to it, and messages to each block."""
        return _messages(self.blocks, self.links, 0, -1)

    @cached_property
    def _after(self) -> tuple[list, list]:
        """Precision of each first knot given the volumes after it, and messages to each block."""
        found = _messages(self.blocks[::-1], self.links[::-1], -1, 0)
        return found[0][::-1], found[1][::-1]


def _messages(
    blocks: Sequence[np.ndarray], links: np.ndarray, enters: int, leaves: int
) -> tuple[list, list]:
    """Pass messages along the blocks, from the knot that they enter to the one they leave."""
    precisions, messages, message = [], [], np.zeros((6, 6))
    for volume, block in enumerate(blocks):
        messages.append(message)
        inverse = scipy.linalg.inv(_with(block, enters, message), assume_a="pos")
        precisions.append(scipy.linalg.inv(_of_knot(inverse, leaves), assume_a="pos"))
        if volume < len(links):
            link = links[volume]
            message = -link[:, None] * _of_knot(inverse, leaves) * link
    return precisions, messages


def _of_knot(block: np.ndarray, knot: int) -> np.ndarray:
    """View the first (0) or the last knot (-1) of a block, (6, 6)."""
    return block[:6, :6] if knot == 0 else block[-6:, -6:]


def _with(block: np.ndarray, knot: int, message: np.ndarray) -> np.ndarray:
    """Add a message (6, 6) to the first or the last knot of a block."""
    block = block.copy()
    _of_knot(block, knot)[...] += message
    return block

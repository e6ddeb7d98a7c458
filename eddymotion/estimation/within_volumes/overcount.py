# SPDX-License-Identifier: Apache-2.0
"""By how much the normal equations of a group of volumes count too much.

``H`` takes points for independent, and residuals for noise. Neighbouring points share noise, and
what the model gets wrong; so the inverse of ``H`` is far too small. What the points pull scatters
between blocks of the brain as it does in truth: with ``G_b`` the pull of block ``b``,
``Σ (H⁻¹ G_b)(H⁻¹ G_b)ᵀ`` is the covariance of the poses. By the ratio of its variances to those of
``H⁻¹``, ``G`` and ``H`` have to be divided before they are combined with a prior.

What all volumes do alike is unknown to ``H``. Both variances are those of what a volume does
unlike the others, ``C = I − 11ᵀ/n``: of ``C H C``, and its inverse where that has one. The
volumes are read at the course found so far, so that motion within them is no misfit, and each
takes one step as a whole.
"""

from __future__ import annotations

import numpy as np
import scipy

from eddymotion.robust import sandwich

DAMPING = 1e-6
"""Relative, for directions that a group does not show."""


def find_overcount(pulls: np.ndarray, square: np.ndarray) -> float:
    """Return the median, over all parameters, of variances by blocks over those by ``H``.

    Parameters
    ----------
    pulls : (B, n, 6) array
        ``G`` of each block.
    square : (n, 6, n, 6) array
        ``H`` of the volumes.
    """
    n_blocks, n, _ = pulls.shape
    inverse = unlike_others(_inverse(unlike_others(square)))
    steps = inverse.reshape(6 * n, 6 * n) @ pulls.reshape(n_blocks, -1).T
    by_blocks = np.einsum("nkk->nk", sandwich(steps.reshape(n, 6, -1)))
    return float(np.median(by_blocks / np.einsum("nknk->nk", inverse)))


def unlike_others(square: np.ndarray) -> np.ndarray:
    """Take what all n volumes have in common out of a matrix (n, 6, n, 6), on both sides."""
    square = square - square.mean(axis=0)
    return square - square.mean(axis=2, keepdims=True)


def _inverse(square: np.ndarray) -> np.ndarray:
    """Invert ``C H C`` (n, 6, n, 6) with what volumes have in common held as they are apart."""
    n = len(square)
    size = np.einsum("nana->a", square) / n
    held = square + np.diag(size)[:, None] / n
    held = held.reshape(6 * n, 6 * n)
    held[np.diag_indices_from(held)] *= 1 + DAMPING
    return scipy.linalg.inv(held, assume_a="pos", check_finite=False).reshape(square.shape)

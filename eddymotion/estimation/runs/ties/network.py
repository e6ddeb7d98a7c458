# SPDX-License-Identifier: Apache-2.0
"""Frames of runs as nodes, information relating two of them as edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from eddymotion.mapping.rigid import exp_rigid, log_rigid

SHARED = 0.5
"""Part of the variance between b=0 and diffusion-weighted frames that runs of a head share."""


@dataclass(frozen=True, eq=False)
class Network:
    """Edges between the frames of K runs; twists are those of the head, in the first run's frame.

    Parameters
    ----------
    of_b0 : (K, 6, 6) array
        Covariance ``B`` of the frames of b=0; zero for the first run.
    within : sequence of K (6, 6) array or None
        ``F``; None for runs without diffusion-weighted volumes whose frame is known.
    runs : (n,) index array
        Which are tied by their diffusion-weighted volumes.
    steps : (n, 6) array
        ``t``, against the first of those.
    covariance : (6 n, 6 n) array
        ``T``
    """

    of_b0: np.ndarray
    within: Sequence[np.ndarray | None]
    runs: np.ndarray
    steps: np.ndarray
    covariance: np.ndarray

    def solve(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Solve for the errors of the nodes.

        Returns
        -------
        errors : (2 K, 6) array
            Of the frames of b=0, then of the diffusion-weighted ones.
        covariance : (12 K, 12 K) array
        widened : float
            By which ``F`` was multiplied.
        """
        errors, covariance, misfit = self._solve(1.0)
        widened = max(1.0, misfit / (6 * (len(self.runs) - 1)))
        if widened > 1:
            errors, covariance, _ = self._solve(widened)
        return errors, covariance, widened

    def _solve(self, widened: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Condition prior knowledge of the nodes on the edges between runs.

        Beforehand ``b ~ N(0, B)`` and ``d = b + f``, ``f ~ N(0, F)``; conditioning a Gaussian is
        generalised least squares.
        """
        n_runs = len(self.of_b0)
        of_b0 = scipy.linalg.block_diag(*self.of_b0)
        before = np.block([[of_b0, of_b0], [of_b0, of_b0 + widened * self._within()]])
        difference = np.zeros((6 * (len(self.runs) - 1), 12 * n_runs))
        for row, run in enumerate(self.runs[1:]):
            rows = slice(6 * row, 6 * row + 6)
            for sign, node in ((1.0, n_runs + run), (-1.0, n_runs + self.runs[0])):
                difference[rows, 6 * node : 6 * node + 6] += sign * np.eye(6)
        steps, noise = self.steps[1:].ravel(), self.covariance[6:, 6:]
        spread = difference @ before @ difference.T + noise
        gain = np.linalg.solve(spread, difference @ before).T
        after = before - gain @ difference @ before
        return (gain @ steps).reshape(-1, 6), after, float(steps @ np.linalg.solve(spread, steps))

    def _within(self) -> np.ndarray:
        """Covariance of ``f`` of all runs, (6 K, 6 K): in part shared by them."""
        nothing = np.zeros((6, 6))
        roots = [
            nothing if one is None else np.real(scipy.linalg.sqrtm(one)) for one in self.within
        ]
        stacked = np.concatenate(roots)
        own = scipy.linalg.block_diag(*(root @ root.T for root in roots))
        return SHARED * stacked @ stacked.T + (1 - SHARED) * own


def seen_from_first(covariance: np.ndarray, pose: np.ndarray, own: np.ndarray,
                    center: np.ndarray) -> np.ndarray:  # fmt: skip
    """Turn the covariance (6, 6) of a twist of a run's frame into that of the first run's.

    Parameters
    ----------
    covariance : (6, 6) array
        About `own`, mm and rad.
    pose : (4, 4) array
        First run → frame of the run.
    own, center : (3,) array
        Centres of the brain in the frame of the run and of the first one, RAS+ mm.
    """
    tiny = 1e-4
    steps = np.linalg.inv(pose) @ exp_rigid(tiny * np.eye(6), own) @ pose
    turned = log_rigid(steps, center).T / tiny
    return turned @ covariance @ turned.T

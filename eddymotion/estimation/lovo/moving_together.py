# SPDX-License-Identifier: Apache-2.0
"""One step of all volumes, made of what each of them found in a pass.

Each volume was registered to what the others predicted *where they lay*, and now all move. Let
``L`` be the held-out operator (:mod:`eddymotion.models.base`), ``w_i`` the way that volume ``i``
found and ``J_i`` the slopes of its prediction by its six unknowns. Moving the others by ``δ_j``
changes the prediction by ``−Σ_j L_ij J_j δ_j``, and volume ``i`` would find ::

    δ_i = w_i + Σ_j L_ij (J_iᵀJ_i)⁻¹ J_iᵀJ_j δ_j

This is the joint step (:mod:`eddymotion.estimation.equations.coupled`) ``Σ_j P_ij J_iᵀJ_j δ_j =
P_ii J_iᵀJ_i w_i``, whoever registered. Of a mean over n volumes with slopes alike it is
``(n − 1)/n`` of each way, less what all have in common.

- A motion common to a shell changes nothing, and is left as the volumes found it. What follows the
  direction of diffusion looks to the predictions nearly like anatomy. So that it does not grow
  either, each volume follows the others a little less (:data:`DAMPING`).
- The slopes are valid up to about a voxel. Volumes that moved farther take their own step, and are
  not followed. Those that kept their pose keep it.
- Means, and models that are not linear, are left out: there each volume takes a part of its own
  step (:func:`eddymotion.estimation.lovo.schedule.relaxation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.images.grid import Box
from eddymotion.images.image import Image
from eddymotion.images.pyramid import band_pass, jittered_points
from eddymotion.machine.parallel import ALONE, Compute, one_blas_thread, parallel_map
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid, twist_millimetres
from eddymotion.models import AverageModel, LinearModel, Model
from eddymotion.models.base import held_out_operator, neighbours
from eddymotion.registration.gauss_newton import REFINE

DAMPING = 0.3
"""Added to the diagonal of the system, relative to it. With .05 what follows the direction of
diffusion grew: 64 directions at b=1000 ended at .0169 mm instead of .0147, and rotations of two
series with high motion at .041 and .038° instead of .037 and .034."""

N_POINTS = 6_000
"""Points at which the slopes of predictions are compared."""

REACH_VOXELS = 1.0

LEAST_SEEN = 1e-7
"""Eigenvalues of ``JᵀJ``, relative to the largest, from which on a motion shows: a single slice
has no slope across."""


@dataclass(frozen=True, eq=False)
class Following:
    """How the predictions of diffusion-weighted volumes follow these volumes.

    Parameters
    ----------
    weights : (N, N) array
        ``L``; zero where nothing predicts.
    shells : sequence of index arrays
        Volumes that share a mean.
    """

    weights: np.ndarray
    shells: Sequence[np.ndarray]

    @classmethod
    def of(cls, model: Model, gradients: Gradients) -> Following | None:
        """Ask a fitted model; None of means, and of models that are not linear.

        Parameters
        ----------
        model : Model
        gradients : Gradients
            Of the aligned volumes.
        """
        if not isinstance(model, LinearModel) or isinstance(model, AverageModel):
            return None
        groups = neighbours(gradients, model.min_q_distance)
        weights = np.nan_to_num(held_out_operator(model.precision(gradients), groups))
        return cls(weights, comparable_groups(gradients))

    @property
    def concerned(self) -> np.ndarray:
        """Whether each volume belongs to a shell, (N,)."""
        found = np.zeros(len(self.weights), bool)
        for shell in self.shells:
            found[shell] = True
        return found

    def joined(self, ways: np.ndarray, slopes: np.ndarray, volumes: np.ndarray) -> np.ndarray:
        """Return the steps of some volumes that follow each other, (n, 6).

        Parameters
        ----------
        ways : (N, 6) array
        slopes : (n, 6, P) array
            ``J`` of the `volumes`.
        volumes : (n,) index array
        """
        steps = np.zeros_like(ways)
        weights = self.weights[np.ix_(volumes, volumes)]
        steps[volumes] = joined_ways(ways[volumes], slopes, weights)
        for shell in self.shells:
            own = np.intersect1d(shell, volumes)
            if len(own):
                steps[own] += (ways[own] - steps[own]).mean(axis=0)
        return steps[volumes]


def move_together(
    init: Motion,
    found: Motion,
    predicted: np.ndarray,
    brain: Image,
    following: Following | None,
    *,
    relaxation: np.ndarray,
    center: np.ndarray,
    reach: float,
    compute: Compute = ALONE,
) -> Motion:
    """Move all volumes at the end of a pass.

    Parameters
    ----------
    init, found : Motion
        The poses before the pass, and those that registration found for each volume on its own;
        equal for volumes that kept their pose.
    predicted : (X, Y, Z, N) array
    brain : Image
        The part of it inside all volumes, bool, on the grid of the predictions.
    following : Following, optional
        How predictions follow the other volumes; each volume moves on its own if not given.
    relaxation : (N,) array
        Which part of its own way each volume goes.
    center : (3,) array
        Centre of the rotations of twists, RAS+ mm.
    reach : float
        Way (mm) up to which volumes follow each other.
    compute : Compute, optional
        Its seed is that of the points at which predictions are compared.
    """
    ways = log_rigid(np.linalg.inv(init.matrices) @ found.matrices, center)
    steps = relaxation[:, None] * ways
    moves = (init.matrices != found.matrices).any(axis=(1, 2))
    if following is not None:
        short = np.linalg.norm(ways * twist_millimetres(), axis=1) < reach
        near = np.flatnonzero(moves & short & following.concerned)
        slopes = slopes_of_predictions(predicted, near, brain, center, compute)
        steps[near] = following.joined(ways, slopes, near)
    return init.updated(moves, init.matrices[moves] @ exp_rigid(steps[moves], center))


def reach_of(recorded: Box) -> float:
    """Return the way (mm) up to which volumes of such voxels follow each other."""
    return REACH_VOXELS * float(np.cbrt(abs(np.linalg.det(recorded.affine[:3, :3]))))


def slopes_of_predictions(
    predicted: np.ndarray,
    volumes: np.ndarray,
    brain: Image,
    center: np.ndarray,
    compute: Compute,
) -> np.ndarray:
    """Return ``J`` of some volumes at random points of the brain, (n, 6, P) float32.

    In the band of the last level of our own registration, whichever engine registers.
    """
    random = np.random.default_rng(compute.seed)
    points = jittered_points(brain.data, brain.affine, N_POINTS, random)

    def slopes(volume: int) -> np.ndarray:
        image = Image(np.nan_to_num(predicted[..., volume]), brain.affine)
        _, slope = band_pass(image, REFINE[-1], 1.0).spline.sample_with_gradient(points)
        known = np.nan_to_num(slope)
        return np.hstack([known, np.cross(points - center, known)]).T

    found = parallel_map(slopes, volumes.tolist(), n_threads=compute.n_threads)
    return np.array(found, np.float32).reshape(len(volumes), 6, len(points))


def joined_ways(ways: np.ndarray, slopes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the step of each volume once all of them take theirs, (n, 6).

    Parameters
    ----------
    ways : (n, 6) array
        Twists, what each found with the others held.
    slopes : (n, 6, P) array
        ``J``
    weights : (n, n) array
        ``L``
    """
    n = len(ways)
    flat = slopes.reshape(6 * n, slopes.shape[2])
    with one_blas_thread():
        products = (flat @ flat.T).astype(float).reshape(n, 6, n, 6)
        follows = np.empty_like(products)
        for volume, row in enumerate(products):
            inverse = np.linalg.pinv(row[:, volume], rcond=LEAST_SEEN, hermitian=True)
            follows[volume] = weights[volume][:, None] * np.tensordot(inverse, row, axes=1)
        system = (1 + DAMPING) * np.eye(6 * n) - follows.reshape(6 * n, 6 * n)
        return np.linalg.solve(system, ways.ravel()).reshape(n, 6)

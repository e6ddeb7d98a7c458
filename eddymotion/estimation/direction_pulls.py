# SPDX-License-Identifier: Apache-2.0
"""Displacements that follow the direction of diffusion, and the course of the head against them.

Let every volume be displaced by ``δ(g)``, a quadratic function of its direction. At an edge of the
mean image the signal then changes with ``g`` as that of tissue does, quadratically: the model of
the signal takes it for anatomy, and nothing in the images speaks against it. On simulated heads
0.9 of the variance of the errors within a shell of 24 directions was of this kind (0.2 by chance).

Heads do not know of directions, and these change from volume to volume without order. With ``x_i``
the products of ``g_i`` of trace zero (five), ``p_i`` the pose and ``d`` the steps of the head in
time::

    p_{i+1} − p_i = d_i + (x_{i+1} − x_i) M,    d_i ~ Student-t(3, s² Δt),    M ~ N(0, Π)

``M`` (5 by 6, for each shell) is what makes the course smoothest. ``Π`` comes from the standard
errors of the poses: half of their squares (:data:`SHARE`), as evenly over the five as there is
room. Where the head moved too much to tell, ``s`` is large and ``M`` stays near zero. Standard
errors stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import ROTATION_RADIUS_MM, exp_rigid, log_rigid
from eddymotion.robust import robust_deviation, student_weights

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the variance of the poses that may follow the direction. Of 1, 1/2 and 1/4 the second was the
best or within 0.003 mm of it on most of 14 series; with 1 two of them got worse, by up to 18 %."""

FEW_DIRECTIONS = 6
"""Shells with fewer tell nothing of a quadratic function."""

FREEDOM, N_STEPS, SETTLED_MM = 3.0, 50, 1e-5

LEAST_SCALE_MM = 1e-4
"""Heads on a computer may not move at all. Lengths of a human head, as the one before."""


@dataclass(frozen=True, eq=False)
class DirectionPulls:
    """How the poses of a group follow the direction of diffusion.

    Parameters
    ----------
    design : (n, C) array
        Products of directions for each volume, five columns a shell, of mean zero.
    pulls : (C, 6) array
        mm; rotations at the radius at which they are compared.
    scale : (6,) array
        ``s``, mm: what the head does from one volume to the next.
    """

    design: np.ndarray
    pulls: np.ndarray
    scale: np.ndarray

    @property
    def displacements(self) -> np.ndarray:
        """Of each volume, mm: (n, 6)."""
        return self.design @ self.pulls

    def __str__(self) -> str:
        size, steps = (float(np.sqrt(np.mean(of**2))) for of in (self.displacements, self.scale))
        return (
            f"{size:.3f} mm of the poses follow the direction, beside steps of the head of "
            f"{steps:.3f} mm"
        )


def find_pulls(
    motion: Motion,
    gradients: Gradients,
    volumes: np.ndarray,
    covariances: np.ndarray,
    center: np.ndarray,
    in_mm: np.ndarray,
) -> DirectionPulls | None:
    """Find what of the poses follows the direction of diffusion.

    Parameters
    ----------
    motion : Motion
        Of N volumes.
    gradients : Gradients
        Theirs, in the scanner's frame.
    volumes : (n,) index array
        A group in a frame of its own, ascending.
    covariances : (N, 6, 6) array
        Of the errors of the poses: mm, rad.
    center : (3,) array
        About which heads turn, RAS+ mm.
    in_mm : (6,) array
        Millimetres for each unit of a twist.

    Returns
    -------
    DirectionPulls
        None where there are no shells, or all are too small.
    """
    own = gradients.rotated(motion.rotations).select(volumes)
    shells = [shell for shell in own.shells if len(shell) >= FEW_DIRECTIONS]
    if not own.is_shelled or not shells:
        return None
    variances = np.einsum("nkk->nk", covariances[volumes]) * in_mm**2
    design = np.hstack([_products(own, shell) for shell in shells])
    prior = np.vstack([_prior(variances[shell]) for shell in shells])
    poses = motion.head[volumes]
    steps = log_rigid(np.linalg.inv(poses[:-1]) @ poses[1:], center) * in_mm
    size = in_mm[-1] / ROTATION_RADIUS_MM  # of the head, relative to a human one
    pulls, scale = _smoothest(
        steps / size, np.diff(design, axis=0), np.diff(volumes), prior / size**2
    )
    return DirectionPulls(design, size * pulls, size * scale)


def without_pulls(
    motion: Motion,
    volumes: np.ndarray,
    found: DirectionPulls,
    center: np.ndarray,
    in_mm: np.ndarray,
) -> Motion:
    """Take out of the poses what follows the direction."""
    away = exp_rigid(-found.displacements / in_mm, center)
    return motion.updated(volumes, motion.matrices[volumes] @ away)


def leave_to_the_course(
    motion: Motion,
    covariances: np.ndarray,
    gradients: Gradients,
    groups: Iterable[np.ndarray],
    center: np.ndarray,
    in_mm: np.ndarray,
) -> Motion:
    """Take out of the poses of groups what follows the direction, as far as time tells.

    Parameters
    ----------
    motion, covariances, gradients, center, in_mm
        As for :func:`find_pulls`.
    groups : iterable of index arrays
    """
    for volumes in groups:
        found = find_pulls(motion, gradients, volumes, covariances, center, in_mm)
        if found is not None:
            log.info("motion of %d volumes: %s", len(volumes), found)
            motion = without_pulls(motion, volumes, found, center, in_mm)
    return motion


def _products(gradients: Gradients, shell: Sequence[int] | np.ndarray) -> np.ndarray:
    """Products of the directions of a shell, of trace zero and mean zero, (n, 5).

    Orthogonal over the sphere, each of mean square one there: together five.
    """
    x, y, z = gradients.bvecs[shell].T
    columns = np.stack([2 * x * y, 2 * x * z, 2 * y * z, x * x - y * y], axis=1)
    last = (2 * z * z - x * x - y * y) / np.sqrt(3)
    own = np.sqrt(15 / 4) * np.column_stack([columns, last])
    design = np.zeros((len(gradients), 5))
    design[shell] = own - own.mean(axis=0)
    return design


def _prior(variances: np.ndarray) -> np.ndarray:
    """Variances of the pulls of a shell, by those of its poses (n, 6): (5, 6)."""
    return np.tile(SHARE / 5 * variances.mean(axis=0), (5, 1))


def _smoothest(
    steps: np.ndarray, changes: np.ndarray, gaps: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the pulls without which the steps (n − 1, 6) are smallest.

    Returns
    -------
    pulls : (C, 6) array
    scale : (6,) array
    """
    known = np.eye(len(prior)) / np.maximum(prior.T, LEAST_SCALE_MM**2)[:, :, None]
    slow, pulls = steps / np.sqrt(gaps)[:, None], np.zeros((changes.shape[1], 6))
    square = np.array([robust_deviation(axis) for axis in slow.T]) ** 2 + LEAST_SCALE_MM**2
    n_told = np.zeros(6)
    for _ in range(N_STEPS):
        rest = steps - changes @ pulls
        away = (rest**2 / gaps[:, None] / square).sum(axis=1)
        weights = student_weights(away, n_values=6, freedom=FREEDOM) / gaps
        left = np.maximum(len(steps) - n_told, 1.0)
        square = (weights[:, None] * rest**2).sum(axis=0) / left + LEAST_SCALE_MM**2
        before, weighted = pulls, changes.T * weights
        told = (weighted @ changes) / square[:, None, None]
        normal = told + known
        n_told = np.trace(np.linalg.solve(normal, told), axis1=1, axis2=2)
        right = (weighted @ steps / square).T[..., None]
        pulls = np.linalg.solve(normal, right)[..., 0].T
        if np.abs(pulls - before).max() < SETTLED_MM:
            break
    return pulls, np.sqrt(square)

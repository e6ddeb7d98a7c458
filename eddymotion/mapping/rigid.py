# SPDX-License-Identifier: Apache-2.0
"""Rigid matrices ⇄ parameters, and how far things moved."""

from __future__ import annotations

import numpy as np
import scipy

POWER_RADIUS_MM = 50.0
"""Radius of the sphere on which Power et al. (2012) measure rotations."""

JENKINSON_RADIUS_MM = 80.0
"""Radius of the sphere over which Jenkinson (1999) averages displacements."""

ROTATION_RADIUS_MM = 50.0
"""Millimetres for a radian, where rotations and translations are compared."""

RIGID_TOLERANCE = 1e-3
"""Of :func:`far_from_rotations`, for transforms that were read: files round."""

STEPS_TO_MEAN = 4
"""Of the iteration for a mean pose; it converges quadratically."""


def twist_millimetres(size: float = 1.0) -> np.ndarray:
    """Millimetres for each unit of a twist (mm, rad), of a head relative to a human one: (6,)."""
    return np.array([1.0] * 3 + [ROTATION_RADIUS_MM * size] * 3)


def far_from_rotations(matrices: np.ndarray) -> np.ndarray:
    """How far the linear parts of (N, 4, 4) are from rotations: largest entry of ``|RᵀR − 1|``.

    Infinite for those that mirror.
    """
    linear = matrices[:, :3, :3]
    off = np.abs(np.swapaxes(linear, 1, 2) @ linear - np.eye(3)).max(axis=(1, 2))
    return np.where(np.linalg.det(linear) < 0, np.inf, off)


def rigid_matrix(translation: np.ndarray, rotation: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Build rigid matrices from parameters; the inverse of :func:`rigid_parameters`.

    Parameters
    ----------
    translation : (..., 3) array
        Displacement of `center`, mm.
    rotation : (..., 3) array
        Extrinsic x, y, z angles, radians: ``R = Rz @ Ry @ Rx``.
    center : (3,) array
        The point that only the translation moves, RAS+ mm.

    Returns
    -------
    (..., 4, 4) array
    """
    rotation = np.asarray(rotation, dtype=float)
    turn = scipy.spatial.transform.Rotation.from_euler("xyz", rotation.reshape(-1, 3)).as_matrix()
    return _about(turn.reshape(*rotation.shape, 3), translation, center)


def rigid_parameters(matrices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the three translations (mm) and three angles (rad) of rigid matrices.

    Parameters
    ----------
    matrices : (..., 4, 4) array
        RAS+ mm.
    center : (3,) array
        The point whose displacement is the translation (the centre of the image grid in the
        confounds file).

    Returns
    -------
    (..., 6) array
        Displacement of `center` along x, y, z; extrinsic x, y, z angles.
    """
    matrices = np.asarray(matrices, dtype=float)
    rotation = matrices[..., :3, :3]
    translation = rotation @ center + matrices[..., :3, 3] - center
    angles = scipy.spatial.transform.Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_euler(
        "xyz"
    )
    return np.concatenate([translation, angles.reshape(translation.shape)], axis=-1)


def exp_rigid(twist: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Rotate about `center` by a rotation vector, then translate: small steps of an optimiser.

    Parameters
    ----------
    twist : (..., 6) array
        Translation (mm), then rotation vector (rad).
    center : (3,) array
        RAS+ mm.

    Returns
    -------
    (..., 4, 4) array
    """
    twist = np.asarray(twist, dtype=float)
    turn = scipy.spatial.transform.Rotation.from_rotvec(twist[..., 3:].reshape(-1, 3)).as_matrix()
    return _about(turn.reshape(*twist.shape[:-1], 3, 3), twist[..., :3], center)


def log_rigid(matrices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Invert :func:`exp_rigid`."""
    rotation = matrices[..., :3, :3]
    translation = rotation @ center + matrices[..., :3, 3] - center
    rotvec = scipy.spatial.transform.Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_rotvec()
    return np.concatenate([translation, rotvec.reshape(translation.shape)], axis=-1)


def right_jacobian(rotations: np.ndarray) -> np.ndarray:
    """Return the right Jacobian of rotation vectors (…, 3): (…, 3, 3).

    ``exp(ω + dω) ≈ exp(ω) exp(J_r dω)`` (Chirikjian 2011, Stochastic models, information theory,
    and Lie groups 2, §10.6.3).
    """
    rotations = np.asarray(rotations, float)
    angle = np.linalg.norm(rotations, axis=-1)[..., None, None]
    small = angle < 1e-6
    safe = np.where(small, 1.0, angle)
    cross = np.cross(np.eye(3), rotations[..., None, :])
    one = np.where(small, 0.5, (1 - np.cos(safe)) / safe**2)
    two = np.where(small, 1 / 6, (safe - np.sin(safe)) / safe**3)
    return np.eye(3) - one * cross + two * cross @ cross


def mean_pose(matrices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the mean of rigid matrices over the last axis before theirs: (..., 4, 4).

    That from which their logarithms (displacement of `center`, rotation vector) average to zero.

    Parameters
    ----------
    matrices : (..., G, 4, 4) array
    center : (3,) array
        RAS+ mm.
    """
    mean = np.asarray(matrices, float)[..., 0, :, :]
    for _ in range(STEPS_TO_MEAN):
        apart = log_rigid(np.linalg.inv(mean)[..., None, :, :] @ matrices, center)
        mean = mean @ exp_rigid(apart.mean(axis=-2), center)
    return mean


def _about(rotation: np.ndarray, translation: np.ndarray, center: np.ndarray) -> np.ndarray:
    matrix = np.zeros((*rotation.shape[:-2], 4, 4))
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = center + np.asarray(translation) - rotation @ np.asarray(center, float)
    matrix[..., 3, 3] = 1.0
    return matrix


def framewise_displacement(parameters: np.ndarray) -> np.ndarray:
    """Sum of absolute changes to the previous volume, rotations on a 50 mm sphere.

    Parameters
    ----------
    parameters : (N, 6) array
        From :func:`rigid_parameters`.

    Returns
    -------
    (N,) array
        In mm; NaN for the first volume.

    References
    ----------
    Power et al. (2012), NeuroImage 59:2142.
    """
    steps = np.abs(np.diff(parameters, axis=0))
    fd = steps[:, :3].sum(axis=1) + POWER_RADIUS_MM * steps[:, 3:].sum(axis=1)
    return np.concatenate([[np.nan], fd])


def rms_displacement(a: np.ndarray, b: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Root-mean-square distance between two poses over an 80 mm sphere around `center`.

    Parameters
    ----------
    a, b : (..., 4, 4) array
        Matrices that map the same reference points, RAS+ mm.
    center : (3,) array
        Centre of the sphere in the reference, RAS+ mm.

    Returns
    -------
    (...) array
        In mm.

    References
    ----------
    Jenkinson (1999), FMRIB technical report TR99MJ1.
    """
    difference = np.asarray(a) - np.asarray(b)
    linear = difference[..., :3, :3]
    shift = linear @ center + difference[..., :3, 3]
    spread = JENKINSON_RADIUS_MM**2 / 5 * np.einsum("...ij,...ij->...", linear, linear)
    return np.sqrt(spread + np.einsum("...i,...i->...", shift, shift))


def target_registration_error(
    estimated: np.ndarray, true: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Distance between where two poses put the same points.

    Parameters
    ----------
    estimated, true : (..., 4, 4) array
        RAS+ mm.
    points : (P, 3) array
        Points of the reference, RAS+ mm.

    Returns
    -------
    (..., P) array
        In mm.
    """
    difference = np.asarray(estimated) - np.asarray(true)
    moved = points @ np.swapaxes(difference[..., :3, :3], -1, -2) + difference[..., None, :3, 3]
    return np.linalg.norm(moved, axis=-1)


PARAMETERS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
"""Columns of the six motion parameters, in the order of fMRIPrep's confounds; mm and rad."""

# SPDX-License-Identifier: Apache-2.0
"""Rigid, similarity and affine matrices, and the small steps between them.

A step moves a point ``x`` by ``δ(x) = t + A (x − x₀)``. The twelve numbers ``(t, A)`` of a step
are ``B p``: the columns of the basis ``B`` say which steps a group knows, ``p`` are its
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from nibabel.affines import apply_affine, from_matvec

from eddymotion.mapping.rigid import exp_rigid

SLACK = 1e-6
"""A start that is this near to a matrix of the group is one (in mm on a radius of 1 mm)."""


@dataclass(frozen=True, eq=False)
class Group:
    """Matrices that can be reached from the identity by small steps of one kind.

    Parameters
    ----------
    name : {"shift", "rigid", "similarity", "affine"}
    basis : (12, K) array
        Translation, then linear part by rows, of each of the K parameters.
    """

    name: str
    basis: np.ndarray

    def columns(self, offsets: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return how an image changes with each parameter.

        Parameters
        ----------
        offsets : (P, 3) array
            Points, from the centre of the steps, mm.
        slopes : (P, 3) array
            The image's gradient there.

        Returns
        -------
        (P, K) array
            ``∇f · ∂δ/∂p``.
        """
        outer = (slopes[:, :, None] * offsets[:, None, :]).reshape(len(slopes), 9)
        return np.hstack([slopes, outer]).astype(float) @ self.basis

    def exp(self, parameters: np.ndarray, center: np.ndarray) -> np.ndarray:
        """Return the matrix (4, 4) of a step: turn and stretch about `center`, then translate."""
        if self.name in ("shift", "rigid"):
            return exp_rigid(np.pad(parameters, (0, 6 - len(parameters))), center)
        translation, linear = self._split(parameters)
        linear = scipy.linalg.expm(linear)
        return from_matvec(linear, center + translation - linear @ center)

    def length(self, parameters: np.ndarray, radius: float) -> float:
        """Upper bound of the RMS displacement (mm) of points within `radius` (RMS, mm)."""
        translation, linear = self._split(parameters)
        return float(np.linalg.norm(translation) + radius * np.linalg.norm(linear, 2))

    def reversal(
        self, matrix: np.ndarray, center: np.ndarray, moving_center: np.ndarray
    ) -> np.ndarray:
        """Return the step of ``T⁻¹`` that is the step of ``T``: (K, K).

        ``T exp(X)`` has the inverse ``T⁻¹ exp(−T X T⁻¹)``; the steps of ``T`` are about `center`,
        those of its inverse about `moving_center`.
        """
        there, back = (from_matvec(np.eye(3), by) for by in (center, -moving_center))
        conjugated = []
        for column in self.basis.T:
            generator = np.zeros((4, 4))
            generator[:3, 3], generator[:3, :3] = column[:3], column[3:].reshape(3, 3)
            change = back @ matrix @ there
            moved = -change @ generator @ np.linalg.inv(change)
            conjugated.append(np.concatenate([moved[:3, 3], moved[:3, :3].ravel()]))
        return np.linalg.lstsq(self.basis, np.array(conjugated).T, rcond=None)[0]

    def nearest(self, matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
        """Return the matrix of the group that is nearest; `center` goes where it went."""
        if self.name == "affine":
            return matrix
        rotation = scipy.linalg.polar(matrix[:3, :3])[0]
        if self.name == "similarity":
            rotation = rotation * np.cbrt(np.linalg.det(matrix[:3, :3]))
        if np.abs(rotation - matrix[:3, :3]).max() < SLACK:
            return matrix
        return from_matvec(rotation, apply_affine(matrix, center) - rotation @ center)

    def _split(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = self.basis @ parameters
        return step[:3], step[3:].reshape(3, 3)


def _basis(linear_parts: list[np.ndarray]) -> np.ndarray:
    columns = [np.concatenate([np.eye(3)[k], np.zeros(9)]) for k in range(3)]
    columns += [np.concatenate([np.zeros(3), part.ravel()]) for part in linear_parts]
    return np.array(columns).T


_ROTATIONS = [np.cross(np.eye(3)[k], np.eye(3)).T for k in range(3)]
"""``ω ×`` for unit ``ω`` along x, y and z."""

_ENTRIES = [np.eye(9)[k].reshape(3, 3) for k in range(9)]

SHIFT = Group("shift", _basis([]))
"""Translations only, for images too blurred to show how a head is turned."""

GROUPS = {
    "rigid": Group("rigid", _basis(_ROTATIONS)),
    "similarity": Group("similarity", _basis([*_ROTATIONS, np.eye(3)])),
    "affine": Group("affine", _basis(_ENTRIES)),
}

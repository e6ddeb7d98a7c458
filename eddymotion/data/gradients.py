# SPDX-License-Identifier: Apache-2.0
"""Gradient tables: b-values and b-vectors in RAS+, whatever the files' convention.

On disk (BIDS, FSL) a b-vector has its components along the *image axes*, the first one negated
when the affine's determinant is positive ("neurological" storage). Inside the package it is a
unit vector in RAS+ world coordinates. The two functions :func:`from_fsl` and :func:`to_fsl` are
the only place where this is converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.images.axes import image_axes
from eddymotion.wording import listed

SHELL_GAP, SHELL_GAP_FLOOR, SHELL_GAP_SHARE = 100.0, 10.0, 0.1
"""b-values (s/mm²) closer than :func:`shell_gap` belong to one shell: 100, as in FSL eddy, but 10
and a tenth of the b-value below b=900, where 100 make another contrast."""


B0_THRESHOLD = 50.0
"""Volumes at or below this b-value (s/mm²) count as b=0."""

MAX_SHELLS = 8
"""A scheme with more distinct b-values is Cartesian or random q-space, not shells."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """b-values and RAS+ b-vectors of a series.

    Parameters
    ----------
    bvals : (N,) array
        In s/mm².
    bvecs : (N, 3) array
        RAS+ components. Normalised to unit length; rows of b=0 volumes become zero. A zero row
        with a high b-value is kept: a trace-weighted (isotropic) volume, as some vendors append.
    b0_threshold : float
        Volumes at or below this b-value count as b=0.
    """

    bvals: np.ndarray
    bvecs: np.ndarray
    b0_threshold: float = B0_THRESHOLD

    def __post_init__(self) -> None:
        bvals = np.array(self.bvals, dtype=float)
        bvecs = np.array(self.bvecs, dtype=float)
        if bvals.ndim != 1 or bvecs.shape != (len(bvals), 3):
            raise EddymotionError(
                f"gradients: expected b-values (N,) and b-vectors (N, 3), "
                f"got {bvals.shape} and {bvecs.shape}"
            )
        wrong = np.flatnonzero(~np.isfinite(bvals) | (bvals < 0))
        if len(wrong):
            raise EddymotionError(
                f"gradients: the b-value of volume {wrong[0]} (counted from 0) is "
                f"{bvals[wrong[0]]:g}, expected numbers of at least 0; correct the .bval file"
            )
        bvecs[bvals <= self.b0_threshold] = 0.0
        if not np.isfinite(bvecs).all():
            rows = np.flatnonzero(~np.isfinite(bvecs).all(axis=1))
            raise EddymotionError(
                f"gradients: the b-vectors of diffusion-weighted volumes {listed(rows, 8)} are "
                "not finite numbers; correct the .bvec file"
            )
        norms = np.linalg.norm(bvecs, axis=1, keepdims=True)
        bvecs = np.divide(bvecs, norms, out=np.zeros_like(bvecs), where=norms > 1e-6)
        bvals.flags.writeable = False
        bvecs.flags.writeable = False
        object.__setattr__(self, "bvals", bvals)
        object.__setattr__(self, "bvecs", bvecs)

    def __len__(self) -> int:
        return len(self.bvals)

    def __repr__(self) -> str:
        return f"Gradients({describe_volumes(self)})"

    @property
    def is_b0(self) -> np.ndarray:
        """True for b=0 volumes, (N,)."""
        return self.bvals <= self.b0_threshold

    @property
    def is_trace(self) -> np.ndarray:
        """True for diffusion-weighted volumes without a direction, (N,)."""
        return ~self.is_b0 & ~self.bvecs.any(axis=1)

    @property
    def b0s(self) -> np.ndarray:
        """Indices of the b=0 volumes."""
        return np.flatnonzero(self.is_b0)

    @property
    def dwis(self) -> np.ndarray:
        """Indices of the diffusion-weighted volumes."""
        return np.flatnonzero(~self.is_b0)

    @cached_property
    def shells(self) -> tuple[np.ndarray, ...]:
        """Indices of the diffusion-weighted volumes of each shell, lowest b-value first."""
        order = self.dwis[np.argsort(self.bvals[self.dwis], kind="stable")]
        bvals = self.bvals[order]
        gaps = np.flatnonzero(np.diff(bvals) > shell_gap((bvals[1:] + bvals[:-1]) / 2))
        return tuple(np.sort(shell) for shell in np.split(order, gaps + 1) if len(shell))

    @property
    def shell_bvals(self) -> np.ndarray:
        """Mean b-value of each of :attr:`shells`."""
        return np.array([self.bvals[shell].mean() for shell in self.shells])

    @property
    def is_shelled(self) -> bool:
        """Whether the b-values form a few well-filled shells (not DSI or random q-space)."""
        n_shells = len(self.shells)
        return forms_shells(self) and (n_shells == 1 or len(self.dwis) >= 4 * n_shells)

    @property
    def qvecs(self) -> np.ndarray:
        """b-vectors times √(b / 1000 s/mm²): positions in q-space up to a constant, (N, 3)."""
        return self.bvecs * np.sqrt(self.bvals / 1000.0)[:, None]

    def select(self, volumes: np.ndarray | slice) -> Gradients:
        """Keep some of the volumes."""
        return Gradients(self.bvals[volumes], self.bvecs[volumes], self.b0_threshold)

    def rotated(self, rotations: np.ndarray) -> Gradients:
        """Express the gradients in the reference frame of a motion.

        Parameters
        ----------
        rotations : (N, 3, 3) array
            Rotation of each volume, reference → volume. A head turned by ``R`` sees the
            scanner's gradient ``g`` along ``R⁻¹ g``.
        """
        return Gradients(
            self.bvals, np.einsum("nji,nj->ni", rotations, self.bvecs), self.b0_threshold
        )


def describe_volumes(gradients: Gradients) -> str:
    """Say how many volumes have which b-value: ``3×b=0, 32×b=1000``."""
    parts = [f"{len(gradients.b0s)}×b=0"]
    if len(gradients.shells) > MAX_SHELLS:
        bvals = gradients.bvals[gradients.dwis]
        return f"{parts[0]}, {len(bvals)}×b={bvals.min():.0f}…{bvals.max():.0f}"
    for shell, bval in zip(gradients.shells, gradients.shell_bvals, strict=True):
        parts.append(f"{len(shell)}×b={bval:.0f}")
    return ", ".join(parts)


def in_thousands(bvals: np.ndarray) -> bool:
    """Whether b-values look as if they were given in ms/µm², a thousandth of s/mm².

    All lie within 30, and some are a twentieth of the others at most. Those of b=0 volumes alone
    are small as well (0 or 5), but have no zeros beside larger fractions.
    """
    largest = float(np.max(bvals, initial=0.0))
    high = np.asarray(bvals) > largest / 20
    some = 0.1 < largest <= 30 and not high.all()
    return bool(some and (high.sum() >= 6 or (np.asarray(bvals) % 1).any()))


def unit_hint(bvals: np.ndarray, b0_threshold: float) -> str:
    """Name the unit that b-values below the threshold seem to have; empty if none."""
    if not in_thousands(bvals) or np.max(bvals) > b0_threshold:
        return ""
    return (
        f"; b-values up to {np.max(bvals):g} may be in ms/µm² (1 is 1000 s/mm²): multiply them by "
        "1000"
    )


def shell_gap(bvals: np.ndarray) -> np.ndarray:
    """How far apart (s/mm²) neighbouring b-values of one shell may be."""
    return np.minimum(SHELL_GAP, SHELL_GAP_FLOOR + SHELL_GAP_SHARE * np.asarray(bvals))


def forms_shells(gradients: Gradients) -> bool:
    """Whether the b-values are few and distinct, however many directions each of them has."""
    return len(gradients.shells) <= MAX_SHELLS and all(
        np.ptp(gradients.bvals[shell]) <= 2 * shell_gap(gradients.bvals[shell].mean())
        for shell in gradients.shells
    )


def reference_volumes(gradients: Gradients, unplaced: np.ndarray | None = None) -> np.ndarray:
    """Return the b=0 volumes, or without any those of the lowest shell: what means are made of.

    Those that could not be placed, (N,) bool, are left out if there are others.
    """
    volumes = gradients.b0s if len(gradients.b0s) else gradients.shells[0]
    if unplaced is None or unplaced[volumes].all():
        return volumes
    return volumes[~unplaced[volumes]]


def comparable_groups(gradients: Gradients) -> tuple[np.ndarray, ...]:
    """Diffusion-weighted volumes of like contrast: each shell, or all where there are none."""
    return gradients.shells if gradients.is_shelled else (gradients.dwis,)


def from_fsl(bvecs: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Convert FSL/BIDS b-vectors (N, 3), along the image axes, to RAS+."""
    return (np.asarray(bvecs, float) * _fsl_sign(affine)) @ image_axes(affine).T


def to_fsl(bvecs: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Convert RAS+ b-vectors (N, 3) to FSL/BIDS components along the image axes."""
    return (np.asarray(bvecs, float) @ image_axes(affine)) * _fsl_sign(affine)


def _fsl_sign(affine: np.ndarray) -> np.ndarray:
    return np.array([-1.0 if np.linalg.det(affine[:3, :3]) > 0 else 1.0, 1.0, 1.0])


def dipy_table(gradients: Gradients) -> Any:
    """Return DIPY's gradient table."""
    from dipy.core.gradients import gradient_table

    return gradient_table(
        gradients.bvals, bvecs=gradients.bvecs, b0_threshold=gradients.b0_threshold
    )

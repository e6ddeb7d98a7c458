# SPDX-License-Identifier: Apache-2.0
"""Which shells the data tie to each other.

The mean of a shell is free, so that only deviations of the signal from both means show the offset
between two shells. With more directions and more similar b-values, the deviations of one shell are
better known from the others. With few directions, or at low b-values, where deviations are small,
errors of the model dominate, and the shells drift apart. Such shells have frames of their own.
Time and images join them, as they join b=0 and diffusion-weighted volumes
(:mod:`eddymotion.estimation.frames`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from eddymotion.data.gradients import Gradients, forms_shells
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rms_displacement
from eddymotion.models import (
    AverageModel,
    GaussianProcessModel,
    LegendreCovariance,
    LinearModel,
)

log = logging.getLogger(__name__)

ENOUGH_DIRECTIONS = 6
"""With fewer, mean and deviations of a shell cannot be separated, just as for a tensor."""

LEAST_TIE = 0.3
"""Least ratio of signal to noise variance, summed over the volumes of a shell that counts as tied.
In simulated series the errors of the offsets were up to 0.1 mm with 1.5, up to 0.15 mm with 0.35,
and without limit with less."""

PAIRS_APART = 3
"""Largest distance in time of pairs of volumes that propose how frames are joined; if there are
none, the nearest pairs do."""

LEAST_FITTED_TIE = 0.02
"""The same with the covariance fitted to the data, whose noise may be large: 0.5 to 5 at an SNR of
20, none at all in an isotropic object."""

LEAST_B = 400.0
"""s/mm²; below, errors of the model outweigh the deviations, however many directions there are: 20
at b=200 and 20 at b=500 had an error of 1 mm, 12 each at b=100, 200 and 300 of 0.7 mm."""

USUAL_DIFFUSIVITY = 0.7e-3
"""mm²/s; how much the signal deviates between directions goes with ``b exp(−b d)``."""


def tied_volumes(gradients: Gradients, model: LinearModel) -> list[np.ndarray]:
    """Group the diffusion-weighted volumes that the data tie to each other.

    Parameters
    ----------
    gradients : Gradients
    model : LinearModel

    Returns
    -------
    list of index arrays
        Those that are not tied to others first, the largest group last.
    """
    if isinstance(model, AverageModel):
        shells = list(gradients.shells)
        return sorted(shells, key=len)
    if not forms_shells(gradients):
        return [gradients.dwis]
    shells = list(gradients.shells)
    tied = [
        shell
        for shell, bval in zip(shells, gradients.shell_bvals, strict=True)
        if len(shell) >= ENOUGH_DIRECTIONS and bval >= LEAST_B
    ]
    while len(tied) > 1:
        strength = strength_of_ties(usual_covariance(gradients), tied)
        if strength.min() >= LEAST_TIE:
            break
        tied.pop(int(strength.argmin()))
    return _in_order(gradients, tied)


def tied_by_data(
    frames: Sequence[np.ndarray], gradients: Gradients, model: LinearModel
) -> list[np.ndarray]:
    """Separate shells that hardly deviate from their means: an isotropic object, such as oil.

    Parameters
    ----------
    frames : list of index arrays
        From :func:`tied_volumes`.
    gradients : Gradients
    model : LinearModel
        Fitted to the last of the frames.
    """
    if not forms_shells(gradients):  # the model of such schemes has no mean of a shell
        return list(frames)
    shells = [shell for shell in gradients.shells if np.isin(shell, frames[-1]).all()]
    if len(shells) < 2 or not isinstance(model, GaussianProcessModel):
        return list(frames)
    covariance = model.covariance.matrix(gradients)
    tied = list(shells)
    while len(tied) > 1:
        strength = strength_of_ties(covariance, tied)
        if strength.min() >= LEAST_FITTED_TIE:
            break
        tied.pop(int(strength.argmin()))
    return list(frames) if len(tied) == len(shells) else _in_order(gradients, tied)


def _in_order(gradients: Gradients, tied: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the shells that are not tied, and those that are together as the last."""
    shells = gradients.shells
    together = {tuple(shell) for shell in tied}
    groups = [shell for shell in shells if tuple(shell) not in together]
    groups = sorted(groups, key=len) if not tied else [*groups, np.sort(np.concatenate(tied))]
    if len(groups) > 1:
        alone = groups[: len(groups) - bool(tied)]
        bvals = ", ".join(f"{gradients.bvals[group].mean():.0f}" for group in alone)
        log.info("shells that the data do not tie to others: b=%s; tied by time and images", bvals)
    return groups


def usual_covariance(gradients: Gradients) -> np.ndarray:
    """Return the covariance of the volumes, over that of the noise, in a usual brain, (N, N)."""
    b = gradients.bvals / 1000.0
    growth = b * np.exp(1000 * USUAL_DIFFUSIVITY * (1 - b))
    return LegendreCovariance(b_power=0.0).matrix(gradients) * np.outer(growth, growth)


def strength_of_ties(covariance: np.ndarray, shells: Sequence[np.ndarray]) -> np.ndarray:
    """How well the deviations of each shell from its mean are known from the other shells.

    Parameters
    ----------
    covariance : (N, N) array
        Of the volumes, in units of the noise variance.
    shells : sequence of index arrays

    Returns
    -------
    array
        ``tr(R⁻¹ E)`` of each shell: ``E`` is the covariance of what the others explain, ``R`` that
        of the rest, noise included.
    """
    volumes = np.concatenate(shells)
    members = [np.flatnonzero(np.isin(volumes, shell)) for shell in shells]
    free = np.zeros((len(volumes), len(volumes)))  # the projector onto deviations
    for own in members:
        free[np.ix_(own, own)] = np.eye(len(own)) - 1 / len(own)
    signal = free @ covariance[np.ix_(volumes, volumes)] @ free
    total = signal + free
    strength = []
    for own in members:
        others = np.setdiff1d(np.arange(len(volumes)), own)
        across = signal[np.ix_(own, others)]
        explained = across @ _inverse(total[np.ix_(others, others)]) @ across.T
        rest = total[np.ix_(own, own)] - explained
        strength.append(np.trace(_inverse(rest) @ explained))
    return np.array(strength)


def joined_in_time(motion: Motion, groups: Sequence[np.ndarray], center: np.ndarray) -> Motion:
    """Bring groups of volumes into the frame of the last one, where they meet in time.

    The nearest pairs of volumes each propose an offset, exact if the head rested between them; the
    most central of the proposals is taken.

    Parameters
    ----------
    motion : Motion
        Of a series; each group consistent within itself.
    groups : sequence of index arrays
    center : (3,) array
        RAS+ mm.
    """
    waiting, placed = list(groups[:-1]), groups[-1]
    while waiting:
        apart = [np.abs(group[:, None] - placed).min() for group in waiting]
        group = waiting.pop(int(np.argmin(apart)))
        distance = np.abs(group[:, None] - placed)
        pairs = np.argwhere(distance <= max(distance.min(), PAIRS_APART))
        own, other = group[pairs[:, 0]], placed[pairs[:, 1]]
        offsets = np.linalg.inv(motion.matrices[own]) @ motion.matrices[other]
        between = rms_displacement(offsets[:, None], offsets, center)
        offset = offsets[between.sum(axis=1).argmin()]
        motion = motion.updated(group, motion.matrices[group] @ offset)
        placed = np.concatenate([placed, group])
    return motion


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(matrix, rcond=1e-8, hermitian=True)

# SPDX-License-Identifier: Apache-2.0
"""Covariances of the poses of volumes and of slices along the course of the head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.estimation.volume_groups import VolumeGroup
from eddymotion.estimation.within_volumes.descent import FoundCourse
from eddymotion.estimation.within_volumes.equations import right_jacobians
from eddymotion.estimation.within_volumes.increments import WITHIN
from eddymotion.estimation.within_volumes.knots import Knots


def covariances(
    knots: Knots, found: FoundCourse, groups: Sequence[VolumeGroup]
) -> tuple[np.ndarray, np.ndarray]:
    """Return covariances of the poses of volumes and of slices.

    Of steps about the centre of the brain, within each group of volumes: errors that a group
    shares are not included. Zero for volumes of one pose, whose errors are known otherwise.

    Returns
    -------
    of_volumes : (N, 6, 6) array
    of_slices : (N, Z, 6, 6) array
    """
    n, n_slices = len(knots.moving), len(knots.basis)
    of_volumes, of_slices = np.zeros((n, 6, 6)), np.zeros((n, n_slices, 6, 6))
    turn, mean = right_jacobians(found.twists), knots.basis.mean(axis=0)
    for group in groups:
        own = [turned(found, knots, turn, volume) for volume in group.volumes]
        of_means = np.array([_mean(one, mean) for one in own])
        of_mean = of_means.sum(axis=0) / len(own) ** 2
        for volume, square, of_own in zip(group.volumes, own, of_means, strict=True):
            if not knots.moving[volume]:
                continue
            of_volumes[volume] = of_own * (1 - 2 / len(own)) + of_mean
            among = np.einsum("zm,manb,zn->zab", knots.basis, square, knots.basis, optimize=True)
            with_own = np.einsum("zm,manb,n->zab", knots.basis, square, mean, optimize=True)
            with_own = (with_own + with_own.transpose(0, 2, 1)) / len(own)
            of_slices[volume] = among - with_own + of_mean
        moving = group.volumes[knots.moving[group.volumes]]
        of_slices[moving] += of_warp(found, knots, turn, moving)
    of_slices += between_knots(knots, found)
    return of_volumes, of_slices


def turned(found: FoundCourse, knots: Knots, turn: np.ndarray, volume: int) -> np.ndarray:
    """Covariance of the steps of the knots of a volume, the other volumes held: (s, 6, s, 6)."""
    rows = np.unique(knots.row[volume])
    own = found.posterior.chain.covariances[volume].reshape(len(rows), 6, len(rows), 6)
    return np.einsum("kac,kcld,lbd->kalb", turn[rows], own, turn[rows], optimize=True)


def of_warp(found: FoundCourse, knots: Knots, turn: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Covariance of the slices from motion that all volumes of a group may share, (Z, 6, 6).

    Its mean over the slices is shared by the group; so it is zero unless all volumes moved.
    """
    if not len(moving):
        return np.zeros((len(knots.basis), 6, 6))
    rows, posterior = knots.row[moving[0]], found.posterior
    alike = turn[rows] @ posterior.common[rows]
    away = np.einsum("zm,mac->zac", knots.basis - knots.basis.mean(axis=0), alike)
    return np.einsum("zac,cd,zbd->zab", away, posterior.of_common, away, optimize=True)


def _mean(own: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Covariance of the mean over the slices of a volume, (6, 6)."""
    return own[0, :, 0] if len(own) == 1 else np.einsum("m,manb,n->ab", mean, own, mean)


def between_knots(knots: Knots, found: FoundCourse) -> np.ndarray:
    """Covariances of deviations from the line between two knots, (N, Z, 6, 6).

    For a random walk that is known at both knots: at a fraction ``f`` of the way ``f (1 − f)``
    times the variance of the increment. Zero for volumes of one pose.
    """
    increments = found.increments
    within = increments.kind == WITHIN
    first = increments.first[within]
    variance = np.zeros((knots.n_rows, 6))
    variance[first] = (increments.scale[WITHIN] / increments.in_mm) ** 2
    variance[first] /= increments.weights(found.twists)[within, None]
    parts = knots.basis[:, :-1] * knots.basis[:, 1:]
    strayed = np.einsum("zm,nma->nza", parts, variance[knots.row[:, :-1]])
    strayed[~knots.moving] = 0.0
    return strayed[..., None] * np.eye(6)

# SPDX-License-Identifier: Apache-2.0
"""How certain the course of the head is: covariances of the poses of volumes and of slices."""

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

    Of steps about the centre of the brain, within each group of volumes: what a group has in
    common is not told here. Zero for volumes of one pose, whose errors are known otherwise.

    Returns
    -------
    of_volumes : (N, 6, 6) array
    of_slices : (N, Z, 6, 6) array
    """
    n, n_slices = len(knots.moving), len(knots.basis)
    of_volumes, of_slices = np.zeros((n, 6, 6)), np.zeros((n, n_slices, 6, 6))
    turn = right_jacobians(found.twists)
    whole = np.einsum("kac,kcld,lbd->kalb", turn, found.covariance, turn, optimize=True)
    mean = knots.basis.mean(axis=0)
    for group in groups:
        rows = knots.row[group.volumes]  # (n, M)
        own = whole[rows.ravel()[:, None], :, rows.ravel()]
        own = own.reshape(*rows.shape, *rows.shape, 6, 6)
        of_means = np.einsum("m,imjnab,n->ijab", mean, own, mean, optimize=True)
        of_mean = of_means.mean(axis=(0, 1))
        with_mean = of_means.mean(axis=1)
        centred = of_means[np.arange(len(rows)), np.arange(len(rows))]
        centred = centred - with_mean - with_mean.transpose(0, 2, 1) + of_mean
        across = np.einsum("imjnab,n->imjab", own, mean, optimize=True).mean(axis=2)
        for index, volume in enumerate(group.volumes):
            if not knots.moving[volume]:
                continue
            of_volumes[volume] = centred[index]
            among = np.einsum(
                "zm,mnab,zn->zab", knots.basis, own[index, :, index], knots.basis, optimize=True
            )
            with_all = np.einsum("zm,mab->zab", knots.basis, across[index])
            of_slices[volume] = among - with_all - with_all.transpose(0, 2, 1) + of_mean
    of_slices += between_knots(knots, found)
    return of_volumes, of_slices


def between_knots(knots: Knots, found: FoundCourse) -> np.ndarray:
    """Covariances of how far heads stray from the line between two knots, (N, Z, 6, 6).

    Of a random walk that is known at both: at the part ``f`` of the way ``f (1 − f)`` times the
    variance of the increment. Zero for volumes of one pose.
    """
    increments = found.increments
    within = increments.kind == WITHIN
    first = increments.change.indices.reshape(-1, 2)[within, 0]
    variance = np.zeros((knots.n_rows, 6))
    variance[first] = (increments.scale[WITHIN] / increments.in_mm) ** 2
    variance[first] /= increments.weights(found.twists)[within, None]
    parts = knots.basis[:, :-1] * knots.basis[:, 1:]
    strayed = np.einsum("zm,nma->nza", parts, variance[knots.row[:, :-1]])
    strayed[~knots.moving] = 0.0
    return strayed[..., None] * np.eye(6)

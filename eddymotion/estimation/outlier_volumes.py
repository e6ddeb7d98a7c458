# SPDX-License-Identifier: Apache-2.0
"""Outlier volumes: those that an estimator has led astray, and how they are recovered.

A registration to the blurred predictions of the first pass may end far from the truth, above all
at high b-values. Its diffusion direction is then rotated with the wrong pose, and the prediction
for that direction does not lead it back. If a volume lies far from its neighbours in time, their
pose is tried: the rotated direction, and so the prediction, is another one there, and the better
fit decides.

A volume of noise fits its prediction nowhere, and its pose is meaningless: it counts as not
placed, and gets the pose of its neighbours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.estimation.estimate import nearest_in_time
from eddymotion.estimation.outliers import correlation_left, percent_lost
from eddymotion.estimation.quality import Quality, assess
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rms_displacement
from eddymotion.models import get_model

log = logging.getLogger(__name__)

N_NEIGHBOURS = 6
"""In time, of which the most central pose is that of the neighbours."""

FAR_MM = 15.0
"""Root-mean-square displacement over a head by which a volume seldom differs from its
neighbours."""

FAR_FOR_FEW_MM = 4.0
"""The same for a volume of a shell with few directions, whose coarse levels are easily misled."""

SUPPORTED = 0.5
"""A volume whose correlation with its prediction is less than this part of the usual one of its
shell, and of what its lost slices leave, is not supported by it."""

MOST_LOST = 0.5
"""At most this share of lost slices excuses a volume."""

ENOUGH_TO_COMPARE = 6
"""With fewer b=0 volumes, those of all shells are used as well to find what is usual, and one that
is astray leads the others of a shell astray."""

WORST_OF, MAX_ROUNDS = 3, 4
"""Each round takes out a third of the unsupported volumes of a shell; there are four at most."""


def far_from_neighbours(motion: Motion, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the volumes (K,) that lie far from their neighbours in time, and theirs (K, 4, 4)."""
    poses = neighbour_poses(motion, center)
    far = np.flatnonzero(rms_displacement(motion.matrices, poses, center) > FAR_MM)
    return far, poses[far]


def neighbour_poses(motion: Motion, center: np.ndarray) -> np.ndarray:
    """Return for each volume the most central of the poses of its neighbours in time, (N, 4, 4).

    It is one of these poses, so that no outlier among them affects it.
    """
    volumes = np.arange(len(motion))
    poses = motion.matrices.copy()
    for volume in volumes if len(motion) > 2 else ():
        by_time = np.argsort(np.abs(volumes - volume), kind="stable")
        near = motion.matrices[by_time[1 : N_NEIGHBOURS + 1]]
        apart = rms_displacement(near[:, None], near, center)
        poses[volume] = near[apart.sum(axis=1).argmin()]
    return poses


def recover_outlier_volumes(
    dwi: DWI, motion: Motion, *, seed: int = 0, n_threads: int = 1
) -> Motion:
    """Give volumes that went astray the pose of their neighbours in time.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
    seed : int
    n_threads : int

    Returns
    -------
    Motion
        `motion` itself where none fits its prediction better at the pose of its neighbours.
    """
    far, poses = far_from_neighbours(motion, dwi.brain_center)
    if not len(far):
        return motion
    tried = motion.updated(far, poses)
    model = get_model("auto", dwi.gradients)
    here, there = (
        assess(dwi, one, model, random_seed=seed, n_threads=n_threads).correlation[far]
        for one in (motion, tried)
    )
    recovered = far[there > here]
    if len(recovered):
        log.debug("recovered at the pose of their neighbours: volumes %s", recovered.tolist())
    return motion.updated(recovered, tried.matrices[recovered])


@dataclass(frozen=True, eq=False)
class RetriedVolumes:
    """What became of volumes that were in doubt.

    Parameters
    ----------
    motion : Motion
        With those that are better off there at the pose of their neighbours.
    quality : Quality
        Of that motion.
    recovered, unplaced : index arrays
        Volumes that moved there; volumes that fit nowhere.
    """

    motion: Motion
    quality: Quality
    recovered: np.ndarray
    unplaced: np.ndarray


def retry_outlier_volumes(
    dwi: DWI,
    motion: Motion,
    quality: Quality,
    *,
    seed: int,
    n_threads: int,
) -> RetriedVolumes | None:
    """Try volumes that are far from their neighbours, or not supported, at the neighbours' pose.

    What is still not supported is taken out, the worst first: it spoils the predictions of others,
    which may be fine without it.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        b=0 and diffusion-weighted volumes may be in frames of their own.
    quality : Quality
        Of that motion, with the model fitted.
    seed : int
    n_threads : int

    Returns
    -------
    RetriedVolumes
        None where no volume was in doubt, or they are best where they are.
    """
    tried, suspect, certain = _at_neighbours(dwi, motion, quality)
    if not len(suspect):
        return None
    model = quality.model or get_model("auto", dwi.gradients)
    judged = partial(assess, dwi, model=model, random_seed=seed, n_threads=n_threads)
    there = judged(tried)
    here = np.nan_to_num(quality.correlation, nan=-np.inf)
    back = suspect[(there.correlation > here)[suspect] | certain[suspect]]
    motion = motion.updated(back, tried.matrices[back])
    if len(back) == len(suspect):
        quality = there
    elif len(back):
        quality = judged(motion)
    for _ in range(MAX_ROUNDS):
        weak = unsupported(quality, dwi.gradients)
        left = weak if motion.unplaced is None else weak[~motion.unplaced[weak]]
        if not len(left):
            break
        unplaced = np.isin(np.arange(len(dwi)), _worst(quality, dwi.gradients, left))
        if motion.unplaced is not None:
            unplaced |= motion.unplaced
        motion = replace(motion, unplaced=unplaced)
        quality = judged(motion)
    weak = unsupported(quality, dwi.gradients)
    back = np.setdiff1d(back, weak)
    if not len(back) and not len(weak):
        return None
    motion = replace(motion.updated(weak, tried.matrices[weak]), unplaced=None)
    if len(back):
        log.info("recovered at the pose of their neighbours: volumes %s", back.tolist())
    return RetriedVolumes(motion, quality, back, weak)


def _at_neighbours(
    dwi: DWI, motion: Motion, quality: Quality
) -> tuple[Motion, np.ndarray, np.ndarray]:
    """Put volumes that are not supported, or far from their neighbours, there.

    Of a small shell all are: one that is astray leads the others astray.

    Returns
    -------
    motion : Motion
    suspect : index array
        Volumes that were put there.
    certain : (N,) bool array
        Those that have nothing to lose.
    """
    weak = np.isin(np.arange(len(dwi)), unsupported(quality, dwi.gradients))
    if motion.unplaced is not None:
        weak &= ~motion.unplaced
    far, poses = np.zeros(len(dwi), bool), motion.matrices.copy()
    limits = np.full(len(dwi), FAR_MM)
    for shell in dwi.gradients.shells:
        if len(shell) < ENOUGH_TO_COMPARE:
            limits[shell] = FAR_FOR_FEW_MM
    for group in (dwi.gradients.b0s, dwi.gradients.dwis):
        if len(sound := group[~weak[group]]):
            theirs = neighbour_poses(motion.select(sound), dwi.brain_center)
            distances = rms_displacement(motion.matrices[sound], theirs, dwi.brain_center)
            far[sound], poses[sound] = distances > limits[sound], theirs
    lost = weak | (far & np.isnan(quality.correlation))  # outside the image
    certain = np.zeros(len(dwi), bool)
    for group in (dwi.gradients.b0s, *dwi.gradients.shells):
        if 1 < len(group) < ENOUGH_TO_COMPARE and lost[group].any():
            certain[group] = True
    lost |= certain
    if (~lost).any():
        poses[lost] = poses[nearest_in_time(np.flatnonzero(lost), np.flatnonzero(~lost))]
    suspect = np.flatnonzero(lost | far)
    return motion.updated(suspect, poses[suspect]), suspect, certain


def _worst(quality: Quality, gradients: Gradients, weak: np.ndarray) -> np.ndarray:
    """Choose those of each shell that agree worst with their prediction."""
    chosen = []
    for group in (gradients.b0s, *gradients.shells):
        own = np.intersect1d(group, weak)
        ranked = own[np.argsort(quality.correlation[own], kind="stable")]
        chosen.append(ranked[: -(-len(own) // WORST_OF)])
    return np.concatenate(chosen)


def unsupported(quality: Quality, gradients: Gradients) -> np.ndarray:
    """Find volumes that agree far worse with their prediction than others of their shell do.

    Returns
    -------
    index array
        None of a shell in which no two volumes agree: it is not known which of them are good.
    """
    correlation, outliers = quality.correlation, quality.outliers
    usual = np.isfinite(correlation)
    if outliers.unplaced is not None:
        usual &= ~outliers.unplaced
    left = correlation_left(np.minimum(percent_lost(outliers) / 100, MOST_LOST))
    overall = np.median(correlation[usual]) if usual.any() else np.nan
    found = []
    for group in (b0s := gradients.b0s, *gradients.shells):
        own = group[usual[group]]
        expected = np.median(correlation[own]) if len(own) else np.nan
        if group is b0s and len(own) < ENOUGH_TO_COMPARE:
            expected = np.fmax(expected, overall)
        with np.errstate(invalid="ignore"):
            weak = correlation[group] < SUPPORTED * expected * left[group]
        if len(group) > 2 or not weak.all():
            found.append(group[weak])
    return np.sort(np.concatenate(found))


def with_neighbours_poses(motion: Motion) -> Motion:
    """Give volumes that could not be placed the pose of the nearest one in time that could.

    Parameters
    ----------
    motion : Motion
        All volumes in one frame.
    """
    if motion.unplaced is None or motion.unplaced.all():
        return motion
    lost, placed = np.flatnonzero(motion.unplaced), np.flatnonzero(~motion.unplaced)
    return motion.updated(lost, motion.matrices[nearest_in_time(lost, placed)])
